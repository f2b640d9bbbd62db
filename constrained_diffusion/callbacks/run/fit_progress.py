"""The progress bar of a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from constrained_diffusion.callbacks.run.pending_losses import at_log_step


class FitProgress(RichProgressBar):
    """Lightning's bar, with loss, P and the share of violating rows as they were at the last log step.

    What a module logs with `prog_bar=True` Lightning reads back in every step, and a GPU has to wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self._figures: dict[str, float] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        if isinstance(outputs, Mapping) and "terms" in outputs and at_log_step(trainer):
            self._figures = figures(outputs["terms"])
        super().on_train_batch_end(trainer, pl_module, outputs, *args)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {**super().get_metrics(trainer, pl_module), **self._figures}


def figures(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Return what the bar shows of a step's terms; of several constraints the worst."""
    shown = {"loss": "loss/total", "P": "penalty/", "violating": "violation_rate/"}
    found = {name: [float(v) for key, v in terms.items() if key.startswith(prefix)] for name, prefix in shown.items()}
    return {name: max(values) for name, values in found.items() if values}
