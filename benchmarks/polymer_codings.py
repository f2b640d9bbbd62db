"""Polymers in each coding and notation, a network of one kind and one number of steps; then what its samples are.

    python benchmarks/polymer_codings.py --data_dir <folder with PolyGen's table> [--steps 1500] [--n 500] [--rows ..]

Each row is the zoo's network on the batches and the noise of `configs/pretrain/polymer.yaml`, with the target that the
coding needs. A string is read as plain postfix ("as written") and with respect for valences.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from constrained_diffusion import ConstrainedDiffusion, Denoiser
from constrained_diffusion.cli.runs import find_config
from constrained_diffusion.datamodules.polymers import PolymerDataModule
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.domains.polymers.coding import coding
from constrained_diffusion.domains.polymers.repeat_units import canonical, is_valid
from constrained_diffusion.domains.polymers.unet1d import Unet1D
from constrained_diffusion.domains.polymers.unit_metrics import clean_samples
from constrained_diffusion.domains.polymers.vocabulary import Vocabulary
from constrained_diffusion.fine_tuning.schedules import WarmupStableDecay
from constrained_diffusion.statistics import clopper_pearson_interval

# name: coding, notation, spelling, length, prediction type
ROWS = {
    "PolyGen's: ordinal, SMILES": ("ordinal", "smiles", "as_given", 36, "v_prediction"),
    "ordinal": ("ordinal", "postfix", "backbone", 34, "v_prediction"),
    "analog bits": ("analog_bits", "postfix", "backbone", 34, "sample"),
    "one-hot": ("one_hot", "postfix", "backbone", 34, "sample"),
}
SAMPLER = Sampler(steps=50, eta=1.0, spacing="linspace")


def trained(row: str, data_dir: str, steps: int) -> tuple[ConstrainedDiffusion, PolymerDataModule, float]:
    """Return a fitted module, its data and the seconds of the fit."""
    kind, notation, spelling, length, predicted = ROWS[row]
    config = yaml.safe_load(find_config("pretrain/polymer.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    seed_everything(config["seed_everything"])
    data |= {"coding": kind, "notation": notation, "spelling": spelling, "length": length}
    module = PolymerDataModule(data_dir, **data)
    channels = coding(kind, len(module.vocabulary)).channels
    denoiser = model["denoiser"]["init_args"]
    schedule = DiffusersSchedule({**denoiser["noise_schedule"]["init_args"]["config"], "prediction_type": predicted})
    network = Unet1D(**{**denoiser["network"]["init_args"], "channels": channels})
    diffusion = ConstrainedDiffusion(
        Denoiser(network, schedule, sample_shape=(channels, length)),
        ema_decay=0.995,
        seed=model["seed"],
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01),
        lr_scheduler=lambda optimizer: WarmupStableDecay(optimizer, steps, 200, steps // 2),
    )
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    started = time.perf_counter()
    trainer.fit(diffusion, datamodule=module)
    return diffusion, module, time.perf_counter() - started


@torch.no_grad()
def samples(diffusion: ConstrainedDiffusion, n: int) -> Tensor:
    """Return samples of seeds 0 .. n - 1 by the averaged weights, `(n, C, L)`."""
    denoiser = diffusion.denoiser
    network, denoiser.network = denoiser.network, diffusion.networks.ema.eval()
    z = seeded_noise(range(n), denoiser.sample_shape, SAMPLER, denoiser.noise_schedule)
    found = denoiser.codec.decode(SAMPLER(denoiser.predict, denoiser.noise_schedule, z))
    denoiser.network = network
    return found


def measured(row: str, data_dir: str, steps: int, n: int) -> dict[str, Any]:
    """Train one row and return its figures."""
    diffusion, module, seconds = trained(row, data_dir, steps)
    numbers = coding(module.coding, len(module.vocabulary)).decode(samples(diffusion, n))
    known = {str(canonical(module.table.smiles[unit])) for unit in module.split[0]}
    written = module.vocabulary.decode(numbers)
    by_valence = Vocabulary(module.vocabulary.tokens[1:], "valence").decode(numbers)
    postfix = module.notation == "postfix"
    counts = clean_samples(by_valence if postfix else written, known)[1]
    return {
        "row": row,
        "parameters": sum(p.numel() for p in diffusion.denoiser.network.parameters()),
        "seconds": round(seconds),
        "n": n,
        "valid_as_written": sum(map(is_valid, written)),
        "valid_by_valence": counts.valid if postfix else None,
        "distinct": counts.distinct,
        "new": counts.clean,
    }


def line(found: dict[str, Any]) -> str:
    """Return a row of the table."""
    n = found["n"]

    def share(hits: int | None) -> str:
        if hits is None:
            return "-"
        low, high = clopper_pearson_interval(hits, n)
        return f"{hits / n:.1%} [{low:.1%}, {high:.1%}]"

    valid = found["valid_by_valence"] or found["valid_as_written"]
    rest = [f"{a / b:.1%}" if b else "-" for a, b in ((found["distinct"], valid), (found["new"], found["distinct"]))]
    cells = [found["row"], f"{found['parameters']:,}", share(found["valid_as_written"])]
    return f"| {' | '.join([*cells, share(found['valid_by_valence']), *rest, str(found['seconds'])])} |"


def main() -> None:
    """Train the rows one after the other, and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    given = parser.parse_args()
    print("| row | parameters | valid as written | valid by valence | distinct | new | seconds |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for row in given.rows:
        found.append(measured(row, given.data_dir, given.steps, given.n))
        print(line(found[-1]), flush=True)
        if given.json:
            given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
