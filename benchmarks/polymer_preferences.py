"""How well preferences order units that nobody showed them, beside what exact conductivities allow.

    python benchmarks/polymer_preferences.py --data_dir <folder with PolyGen's table> [--model polymer_preference]
        [--splits 0 1 2 3 4] [--epochs 50] [--runs runs/benchmark]

Rows: the preference model; the same network fitted on exact log conductivities of the same units, by squared error; and
kernel ridge regression on the same. Columns: the held-out tenth, the judge's quarter, and all of these units together.
With `splits`, `lightning fit --config preference.yaml` runs once for each, with units of its own held out, and the
table is their mean. Intervals are of 500 bootstrap samples of *units*, since pairs of few units are not independent.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from commands import run
from torch import Tensor, nn

from constrained_diffusion.cli.runs import find_config
from constrained_diffusion.datamodules.polymers import PolymerDataModule
from constrained_diffusion.domains.polymers.augment_tokens import KeyedTokenNoise
from constrained_diffusion.domains.polymers.coding import OneHot
from constrained_diffusion.domains.polymers.judge import Judge
from constrained_diffusion.domains.polymers.preferences.model import MeritCNN, load_merits
from constrained_diffusion.domains.polymers.split import preferences_and_judge
from constrained_diffusion.domains.polymers.zoo_entries import APART
from constrained_diffusion.fine_tuning.schedules import WarmupStableDecay

BATCH, RESAMPLED = 128, 500
Found = dict[str, dict[str, tuple[Tensor, Tensor]]]  #: way, part of the units: merits and values


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


def cell(found: list[tuple[Tensor, Tensor]]) -> str:
    """Write both accuracies, the mean over splits (merits and values of each), with their bootstrap intervals."""
    generator = torch.Generator().manual_seed(0)

    def drawn(merits: Tensor, values: Tensor) -> tuple[float, float]:
        rows = torch.randint(len(values), (len(values),), generator=generator)
        return accuracies(merits[rows], values[rows])

    draws = torch.tensor([[drawn(*split) for split in found] for _ in range(RESAMPLED)]).mean(1)
    low, high = draws.quantile(torch.tensor([0.025, 0.975]), dim=0)
    mean = torch.tensor([accuracies(*split) for split in found]).mean(0)
    return " / ".join(f"{mean[k]:.3f} [{low[k]:.3f}, {high[k]:.3f}]" for k in range(2))


@torch.no_grad()
def scored(model: Any, clean: Tensor) -> Tensor:
    """Return what a network says of `clean` `(n, V, L)`."""
    merits: Tensor = torch.cat([model(part) for part in clean.split(500)])
    return merits


def fitted_on_preferences(split: int, given: argparse.Namespace) -> str:
    """Fit `preference.yaml` on another split, from another seed, by the command; return its export."""
    config = yaml.safe_load(find_config("preference.yaml").read_text())
    data = config["data"]["init_args"]
    config["seed_everything"] = config["model"]["init_args"]["seed"] = data["seed"] = data["split_seed"] = split
    data["table"] = str(Path(given.data_dir).absolute())
    if given.fit_epochs:
        config["trainer"]["max_epochs"] = config["trainer"]["check_val_every_n_epoch"] = given.fit_epochs
    return str(run("fit", config, f"preference_{split}", given.runs.absolute()) / "export")


def measured(model: MeritCNN, split: int, given: argparse.Namespace) -> Found:
    """Return what each way says of each part of the units, and their values."""
    data = PolymerDataModule(given.data_dir, split_seed=split)
    train, held_out = data.split
    own, judged = preferences_and_judge(train)
    units, values = data.table.smiles, data.table.conductivity.log10()
    clean = OneHot(len(model.vocabulary)).encode(model.vocabulary.encode(units, data.length))
    exact = fitted_on_values(model, clean[own], values[own], given.epochs)
    ridge = Judge.fit([units[row] for row in own], values[own], units)
    says = {
        "simulated preferences": scored(model, clean),
        "the same network, exact values": scored(exact, clean),
        "kernel ridge, exact values": ridge.predict(units),
    }
    parts = {"held-out tenth": held_out, "judge's quarter": judged, "both": sorted(held_out + judged)}
    return {way: {part: (merits[rows], values[rows]) for part, rows in parts.items()} for way, merits in says.items()}


def main() -> None:
    """Fit, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model", default="polymer_preference", help="a zoo name or an export, of split 0")
    parser.add_argument("--splits", nargs="+", type=int, help="fit a preference model on each, in place of `model`")
    parser.add_argument("--epochs", type=int, default=50, help="of the fit on exact values")
    parser.add_argument("--fit_epochs", type=int, help="of the fit on preferences; its config's when not given")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    given = parser.parse_args()
    models = {split: fitted_on_preferences(split, given) for split in given.splits or []} or {0: given.model}
    found = [measured(load_merits(model), split, given) for split, model in models.items()]
    ways, parts = list(found[0]), found[0]["simulated preferences"]
    print(f"{len(found)} split(s) of the units; all pairs / more than {APART} decades apart\n")
    print("| fitted on | " + " | ".join(f"{name}, {len(own[1])} units" for name, own in parts.items()) + " |")
    print("|---|" + "---|" * len(parts))
    for way in ways:
        print(
            f"| {way} | " + " | ".join(cell([split[way][part] for split in found]) for part in parts) + " |", flush=True
        )


if __name__ == "__main__":
    main()
