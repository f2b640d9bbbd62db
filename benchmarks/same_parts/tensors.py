"""All numbers that a run left, by names that do not depend on where the code keeps them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# Parts that a module is put together from: a name means the same with them and without.
CONTAINERS = ("networks", "loss", "steering", "evaluator")
# What the networks' weights begin with, in either tree, and what they are called here.
PREFIXES = {"denoiser.network.": "trained.", "trained.": "trained.", "ema.": "ema."}
CONTROLLERS = ("PenaltyScheduler", "FixedPenalty", "DualAscent", "NuPI", "AugmentedLagrangian")


def canonical(name: str) -> str:
    """Return the name of a module's tensor without the parts that the module is put together from.

    >>> canonical("networks.denoiser.network.conv.weight"), canonical("loss.steering.penalty_coefficient")
    ('trained.conv.weight', 'penalty_coefficient')
    """
    first, _, rest = name.partition(".")
    while first in CONTAINERS and rest:
        name = rest
        first, _, rest = name.partition(".")
    for prefix, ours in PREFIXES.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name


def collect(run: Path, cache: Path) -> dict[str, Tensor]:
    """Return all of a run's tensors, whatever it was: what a fit left, what a noise optimisation left.

    Args:
        run: its folder.
        cache: where a training set that was drawn for it is.

    Raises:
        ValueError: two tensors have one name.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in _all(run, cache):
        if name in found:
            raise ValueError(f"two tensors of '{run}' are called '{name}'; keep them apart in {Path(__file__).name}.")
        found[name] = tensor
    return found


def _all(run: Path, cache: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(cache.rglob("*.safetensors")):  # its name is a hash of the settings
        yield from (("training_set/" + name, tensor) for name, tensor in load_file(file).items())
    checkpoint = run / "checkpoints" / "last.ckpt"
    if checkpoint.is_file():
        yield from of_checkpoint(torch.load(checkpoint, map_location="cpu", weights_only=True))
    for folder in ("export", "samples", "noise"):
        for file in sorted((run / folder).rglob("*.safetensors")):
            name = file.relative_to(run).with_suffix("").as_posix()
            yield from ((f"{name}/{key}", tensor) for key, tensor in load_file(file).items())
    if (run / "metrics.csv").is_file():
        yield from of_log(run / "metrics.csv")
    if (run / "results.jsonl").is_file():
        for row in map(json.loads, (run / "results.jsonl").read_text().splitlines()):
            for name in ("rewards", "log_probabilities"):
                yield f"record/{row['key']}/{name}", torch.tensor(row[name], dtype=torch.float64)


def of_checkpoint(checkpoint: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield weights, EMA, coefficients, the optimisers' state and the controllers' state."""
    for name, tensor in checkpoint["state_dict"].items():
        yield f"checkpoint/{canonical(name)}", tensor
    for i, optimizer in enumerate(checkpoint["optimizer_states"]):
        yield from flat(f"optimizer/{i}", optimizer["state"])
    for key, state in checkpoint["callbacks"].items():
        name = key.partition("{")[0]  # Lightning writes the settings behind it
        if name in CONTROLLERS:
            yield from flat(f"controller/{name}", state)


def of_log(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield each column of a `metrics.csv` that tells of losses and coefficients, its empty cells left out."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    for name in rows[0] if rows else ():
        if ("/" in name and not name.startswith("val/")) or name == "val/diffusion_loss":
            values = [float(row[name]) for row in rows if row[name]]
            yield f"log/{name}", torch.tensor(values, dtype=torch.float64)


def flat(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors and numbers of nested dictionaries and lists, by their path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(f"{name}/{key}", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from flat(f"{name}/{i}", inner)
    elif isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, bool | int | float):
        yield name, torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
