"""The two checkpoints of a run: `last`, and `best_feasible`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Writes `checkpoints/last.ckpt` after every epoch's validation, or every `every_n_train_steps` optimiser steps."""

    def __init__(self, every_n_train_steps: int | None = None) -> None:
        super().__init__(
            filename="last",
            save_top_k=1,
            enable_version_counter=False,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=every_n_train_steps is None,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)


class BestFeasible(ModelCheckpoint):
    """Writes `checkpoints/best_feasible.ckpt`: the lowest held-out diffusion loss among the feasible validations.

    Feasible: the upper 95 % bound of the share of EMA samples with g > tolerance is at most the module's
    `max_violation_rate`.
    """

    def __init__(self) -> None:
        super().__init__(
            filename="best_feasible",
            monitor="val/diffusion_loss",
            mode="min",
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        upper = trainer.callback_metrics.get("val/own_violation_upper_95")
        if upper is not None and float(upper) <= pl_module.max_violation_rate:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Nothing: it is validations that find feasible weights."""
