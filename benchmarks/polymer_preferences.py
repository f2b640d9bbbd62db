"""How well preferences order units that nobody showed them, beside what exact conductivities allow.

    python benchmarks/polymer_preferences.py --data_dir <folder with PolyGen's table> [--model polymer_preference]
        [--epochs 50]

Rows: the preference model; the same network fitted on exact log conductivities of the same units, by squared error; and
kernel ridge regression on the same. Columns: the held-out tenth, the judge's quarter, and all of these units together.
Intervals are of 500 bootstrap samples of *units*, since pairs of few units are not independent.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from constrained_diffusion.datamodules.augment_tokens import KeyedTokenNoise
from constrained_diffusion.fine_tuning.schedules import WarmupStableDecay
from constrained_diffusion.polymers.coding import OneHot
from constrained_diffusion.polymers.judge import Judge
from constrained_diffusion.polymers.parts import preferences_and_judge
from constrained_diffusion.preferences.model import MeritCNN, load_merits
from constrained_diffusion.zoo.polymers import APART, table

BATCH, RESAMPLED = 128, 500


def fitted_on_values(like: MeritCNN, clean: Tensor, values: Tensor, epochs: int) -> MeritCNN:
    """Return a new network of the same settings, fitted to `values` `(n,)` of `clean` `(n, V, L)`."""
    torch.manual_seed(0)
    model, noise = MeritCNN(**like.settings), KeyedTokenNoise(share=0.3, most=0.6)
    wanted = (values - values.mean()) / values.std()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.3)
    batch = min(BATCH, len(clean))
    steps = epochs * (len(clean) // batch)
    schedule = WarmupStableDecay(optimizer, steps, steps // 20, steps - steps // 20)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(clean))[: len(clean) // batch * batch].split(batch):
            keys = [(0, step, row) for row in range(len(rows))]
            loss = nn.functional.mse_loss(model(noise(clean[rows, None], keys))[:, 0], wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
    return model.eval()


def accuracies(merits: Tensor, values: Tensor) -> tuple[float, float]:
    """Return the share of pairs in the right order, of all and of those far apart; units may be there twice."""
    gap, found = (x[:, None] - x for x in (values, merits))
    right = ((gap > 0) == (found > 0)).double()
    apart, far = gap > 0, gap > APART  # each pair once
    return float(right[apart].mean()), float(right[far].mean())


def cell(merits: Tensor, values: Tensor) -> str:
    """Write both accuracies with their bootstrap intervals."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(len(values), (len(values),), generator=generator) for _ in range(RESAMPLED)]
    all_draws = torch.tensor([accuracies(merits[rows], values[rows]) for rows in draws])
    low, high = all_draws.quantile(torch.tensor([0.025, 0.975]), dim=0)
    found = accuracies(merits, values)
    return " / ".join(f"{found[k]:.3f} [{low[k]:.3f}, {high[k]:.3f}]" for k in range(2))


@torch.no_grad()
def scored(model: Any, clean: Tensor) -> Tensor:
    """Return what a network says of `clean` `(n, V, L)`."""
    merits: Tensor = torch.cat([model(part) for part in clean.split(500)])
    return merits


def main() -> None:
    """Fit, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model", default="polymer_preference", help="a zoo name or an export")
    parser.add_argument("--epochs", type=int, default=50, help="of the fit on exact values")
    given = parser.parse_args()
    data, model = table(given.data_dir), load_merits(given.model)
    train, held_out = data.split
    own, judged = preferences_and_judge(train)
    units, values = data.table.smiles, data.table.conductivity.log10()
    clean = OneHot(len(model.vocabulary)).encode(model.vocabulary.encode(units, data.length))
    parts = {"held-out tenth": held_out, "judge's quarter": judged, "both": sorted(held_out + judged)}
    ridge = Judge.fit([units[row] for row in own], values[own], units)
    exact = fitted_on_values(model, clean[own], values[own], given.epochs)
    rows = {
        "simulated preferences": scored(model, clean),
        "the same network, exact values": scored(exact, clean),
        "kernel ridge, exact values": ridge.predict(units),
    }
    print(f"{len(own)} units to learn from; all pairs / more than {APART} decades apart\n")
    print("| fitted on | " + " | ".join(f"{name}, {len(part)} units" for name, part in parts.items()) + " |")
    print("|---|" + "---|" * len(parts))
    for name, merits in rows.items():
        print(
            f"| {name} | " + " | ".join(cell(merits[part], values[part]) for part in parts.values()) + " |", flush=True
        )


if __name__ == "__main__":
    main()
