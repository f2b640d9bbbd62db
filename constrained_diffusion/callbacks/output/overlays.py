"""Pictures of all samples on top of each other, as in the penalty paper's Figures 2 and 3."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.reports.overlays import file_name
from constrained_diffusion.runtime.files import write_bytes
from constrained_diffusion.runtime.run_folder import RunFolder


class Overlays(Callback):
    """Writes `<run>/overlays/before.png` and `after.png` when a test ends, for evaluations that draw overlays.

    Further pictures of the evaluation's become `NAME_before.png` and `NAME_after.png`. The module is spoken to as by
    `SampleGrid`: every rank samples, rank zero draws. Without overlays nothing is sampled.

    Args:
        samples: how many; they have the seeds 0 .. samples - 1.

    Raises:
        ValueError: samples is below 1.
    """

    def __init__(self, samples: int = 100) -> None:
        if samples < 1:
            raise ValueError(f"Overlays expects at least one sample, got {samples}.")
        self.samples = samples

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not draws_overlays(pl_module.evaluation):
            return
        sides = {"before": "pretrained", "after": "ema"}
        if not pl_module.steering.names:  # without constraints there is no pretrained copy to compare with
            del sides["before"]
        for side, weights in sides.items():
            with torch.no_grad():
                clean = pl_module.sample(range(self.samples), weights=weights)
            if trainer.is_global_zero:
                write_overlays(pl_module.evaluation, clean, RunFolder.of(trainer), side)


def draws_overlays(evaluation: Evaluation | None) -> bool:
    """Return whether it has overlays; to draw samples for one that has none would be wasted."""
    return evaluation is not None and bool(evaluation.overlays_legend)


@torch.no_grad()
def write_overlays(evaluation: Evaluation, clean: Tensor, run: RunFolder, side: str) -> None:
    """Write the overlays of samples `(B, *shape)` to `overlays/` in the run folder.

    Args:
        evaluation: what draws them.
        clean: in the data's units.
        run: the run folder.
        side: "before" or "after".
    """
    for name, png in evaluation.overlays(clean).items():
        run.overlays.mkdir(parents=True, exist_ok=True)
        write_bytes(run.overlays / file_name(name, side), png)
