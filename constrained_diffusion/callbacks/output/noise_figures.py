"""What an evaluation says of a noise optimisation's samples, before and after; read from the files of the run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchmetrics import Metric

from constrained_diffusion.constraint_rates import ConstraintRates
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime.run_folder import RunFolder

SIDES = {"before": "before", "after": "sample"}  #: side -> the tensor's name in noise/KEY.safetensors
BATCH = 64


@torch.no_grad()
def before_and_after(
    folder: Path,
    keys: Sequence[str],
    evaluation: Evaluation,
    constraints: Sequence[Constraint] = (),
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Measure the finished samples; one rank does it for all, and the evaluation's own state stays as it is.

    Args:
        folder: the run; `noise/KEY.safetensors` holds each key's samples.
        keys: of the finished samples, at least one.
        evaluation: what judges them, on `device`.
        constraints: those of the objective; how often each is broken, by its own g, is measured too.
        device: where the samples go to be judged.

    Returns:
        "before", "after" and what the evaluation declares, as in `results.json` of a fine-tuning.
    """
    results = {}
    for side, name in SIDES.items():
        judge, own = copy.deepcopy(evaluation), ConstraintRates(constraints).to(device)
        judge.reset()
        for metric in (own, *judge.modules()):
            if isinstance(metric, Metric):
                metric.distributed_available_fn = _alone
        for clean in _batches(folder, keys, name):
            clean = clean.to(device)
            judge.update(clean)
            own.update(clean)
        results[side] = judge.compute()
        if constraints:
            results[side] |= {key: value for key, value in own.compute().items() if key != "n"}
    evaluation.compare(results["before"], results["after"])
    return {**results, **evaluation.declared()}


def samples(folder: Path, keys: Sequence[str], side: str) -> Tensor:
    """Return the samples of those keys, `(len(keys), *shape)`, of the side "before" or "after"."""
    return torch.cat(list(_batches(folder, keys, SIDES[side])))


def _batches(folder: Path, keys: Sequence[str], name: str) -> Iterator[Tensor]:
    for first in range(0, len(keys), BATCH):
        files = [RunFolder(folder).noise / f"{key}.safetensors" for key in keys[first : first + BATCH]]
        yield torch.stack([load_file(file)[name] for file in files])


def _alone() -> bool:
    return False  # the other ranks are not asked: their samples lie in the same folder
