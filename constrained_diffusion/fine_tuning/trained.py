"""`TrainedModule`: what all our modules that are trained have: an optimiser from the config, a clock, a record."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import nn
from torch.optim import Optimizer

from constrained_diffusion.runtime.files import write_json


class TrainedModule(LightningModule, ABC):
    """Counts the batches and the seconds of a fit, and makes its optimiser; checkpoints keep both counts.

    Args:
        seed: keys all that training draws.
        optimizer: a factory, called with the trained parameters.
        lr_scheduler: a factory; the learning rate is stepped once per optimiser step.
    """

    step_skipped = False  #: whether the last optimiser step was left out

    def __init__(self, seed: int, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None) -> None:
        super().__init__()
        self.seed, self.optimizer, self.lr_scheduler = seed, optimizer, lr_scheduler
        self.batches_seen, self._earlier_seconds, self._started = 0, 0.0, 0.0

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The network whose weights the optimiser moves, where they require a gradient."""

    @property
    def seconds(self) -> float:
        """How long the fit has taken, earlier parts of a resumed one included."""
        return self._earlier_seconds + (time.monotonic() - self._started if self._started else 0.0)

    def configure_optimizers(self) -> Any:
        """Build optimiser and schedule over the trained parameters.

        Raises:
            ValueError: gradients are to be clipped, and the optimiser cannot be given clipped ones.
        """
        optimizer = self.optimizer([p for p in self.trained.parameters() if p.requires_grad])
        trainer = self._trainer
        if (
            trainer is not None
            and trainer.gradient_clip_val
            and _scaled_until_the_step(optimizer, trainer.precision_plugin)
        ):
            raise ValueError(
                f"{type(optimizer).__name__} with fused: true scales float16's gradients itself, so they cannot be "
                "clipped before; leave out fused or trainer.gradient_clip_val, or choose precision bf16-mixed."
            )
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip as the Trainer was told, also for an optimiser with `fused=True`, which Lightning refuses in bf16-mixed.

        It does so because such an optimiser would undo float16's scaling by itself; bfloat16 has none.
        """
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and gradient_clip_val:
            how = () if gradient_clip_algorithm is None else (gradient_clip_algorithm,)
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, *how)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_fit_start(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_fit_end(self) -> None:
        """Stop the clock."""
        self._earlier_seconds, self._started = self.seconds, 0.0

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, and say in `step_skipped` where it was none.

        float16's `GradScaler` leaves out a step whose gradients overflowed. (An optimiser with `fused=True` leaves
        steps out by itself, where nothing sees it.) A loss that overflowed is another matter, which no other scale
        mends: `FitStatus` ends the fit as diverged.
        """
        made: list[bool] = []
        handle = optimizer.optimizer.register_step_post_hook(lambda *_: made.append(True))
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:
            handle.remove()
        self.step_skipped = not made
        if made:
            self.after_step()

    def after_step(self) -> None:
        """React to an optimiser step, unless it was left out: by default not."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save how many batches were seen, which keys what is drawn next, and the time spent."""
        checkpoint["batches_seen"], checkpoint["seconds"] = self.batches_seen, self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore both."""
        self.batches_seen, self._earlier_seconds = checkpoint["batches_seen"], checkpoint.get("seconds", 0.0)

    def before_export(self) -> None:
        """Make ready for `export`; all ranks must call it before one of them exports. Nothing is needed by default."""

    def write_training(self, folder: str | Path) -> None:
        """Write `training.json`, what a card says of the training, beside exported weights."""
        facts = {
            "seed": self.seed,
            "batches": self.batches_seen,
            "seconds": round(self.seconds),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        write_json(Path(folder) / "training.json", facts)


def _scaled_until_the_step(optimizer: Optimizer, plugin: Precision) -> bool:
    """Return whether gradients are still scaled when it is time to clip them."""
    scales = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
    return scales and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
