"""One run, one folder: the first rank's."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class SharedRunFolder(Callback):
    """Tells all ranks the first one's `trainer.default_root_dir`, before any other callback reads it.

    Under torchrun or srun every rank runs the whole command by itself, and only the first makes a folder; the others
    can ask for it as soon as there is a process group, and that is in `setup`. Place it first.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The Trainer has no setter. What is set up before and has a path, the loggers, writes on the first rank alone.
        trainer._default_root_dir = trainer.strategy.broadcast(trainer.default_root_dir)  # type: ignore[attr-defined]
