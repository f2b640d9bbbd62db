"""Pictures of all plans on top of each other, as in the penalty paper's Figures 2 and 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.reports.page import note, picture
from constrained_diffusion.runtime.files import write_bytes
from constrained_diffusion.runtime.run_folder import RunFolder

LEGEND = (
    "All plans of the same seeds, from blue (start) to orange (end). Red discs: forbidden zones; dark red: points "
    "inside one. Star: the goal."
)


class Overlays(Callback):
    """Writes `<run>/plans/before.png` and `after.png` when a test ends, for evaluations that draw overlays.

    For plans there are `executed_before.png` and `executed_after.png` too. The module is spoken to as by `SampleGrid`:
    every rank samples, rank zero draws. Without overlays nothing is sampled.

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
        if not len(pl_module.constraints):  # without constraints there is no pretrained copy to compare with
            del sides["before"]
        for side, weights in sides.items():
            with torch.no_grad():
                clean = pl_module.sample(range(self.samples), weights=weights)
            if trainer.is_global_zero:
                write_overlays(pl_module.evaluation, clean, RunFolder.of(trainer), side)


def draws_overlays(evaluation: Evaluation | None) -> bool:
    """Return whether it has overlays of its own; to draw samples for the default, which has none, would be wasted."""
    return evaluation is not None and type(evaluation).overlays is not Evaluation.overlays


@torch.no_grad()
def write_overlays(evaluation: Evaluation, clean: Tensor, run: RunFolder, side: str) -> None:
    """Write the overlays of samples `(B, *shape)` to `plans/` in the run folder.

    Args:
        evaluation: what draws them.
        clean: in the data's units.
        run: the run folder.
        side: "before" or "after".
    """
    for name, png in evaluation.overlays(clean).items():
        run.overlays.mkdir(parents=True, exist_ok=True)
        write_bytes(run.overlays / (f"{name}_{side}.png" if name else f"{side}.png"), png)


def plans_section(folder: Path) -> str:
    """Return a report's section (HTML) on the overlays in `folder`, "" where there are none."""
    names = [f"{name}{side}" for name in ("", "executed_") for side in ("before", "after")]
    found = [(name.replace("_", ", "), folder / f"{name}.png") for name in names if (folder / f"{name}.png").is_file()]
    if not found:
        return ""
    figures = [picture(name, path) for name, path in found]
    return "\n".join(["<h2>Plans</h2>", note(LEGEND), '<div class="pair">', *figures, "</div>"])
