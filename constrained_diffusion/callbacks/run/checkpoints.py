"""The two checkpoints of a run: `last`, and `best_feasible`; both are written whole or not at all."""

from __future__ import annotations

import signal
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from constrained_diffusion.callbacks.run.checkpoint_io import AtomicCheckpointIO
from constrained_diffusion.callbacks.run.end_signal import EndSignal
from constrained_diffusion.runtime.run_folder import RunFolder


class LastCheckpoint(Checkpoint):
    """Writes `checkpoints/last.ckpt` at the end of a fit, and before it as time goes by, or every n optimiser steps.

    SIGTERM and SIGUSR1, coming to any rank, end the fit on all ranks after the running step, with this checkpoint; the
    process exits with 128 + the signal's number. Several GPUs ask each other at log steps and after epochs alone.

    Where a validation follows a step, both wait until it is over: Lightning would not make up for it in a resumed fit.

    Args:
        every_n_train_steps: n; None: after an epoch and its validation, if the time is up.
        every_n_seconds: how much work a kill may cost; 0: after every epoch, however short. Writing a large model takes
            as long as many steps of it.

    Raises:
        ValueError: n is not positive, or the time is negative.
    """

    def __init__(self, every_n_train_steps: int | None = None, every_n_seconds: float = 60.0) -> None:
        if not every_n_seconds >= 0:
            raise ValueError(f"every_n_seconds is a time of 0 or more, got {every_n_seconds}.")
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps counts optimiser steps, at least 1, got {every_n_train_steps}.")
        self.every_n_train_steps, self.every_n_seconds = every_n_train_steps, every_n_seconds
        self._saved_at = 0.0
        self.signal = EndSignal()
        self._step, self._asked, self._due, self._epoch_over = 0, 0, False, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        write_atomically(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signal.listen()
        self._saved_at = time.monotonic()
        if trainer.world_size > 1:  # Lightning's ranks ask each other for SIGTERM in every step, and a GPU waits for it
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self._step, self._asked, self._due = trainer.global_step, trainer.global_step, False
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0:
            # At the beginning of an epoch; where a fit ends by `max_steps` Lightning takes it for the end of one.
            trainer.fit_loop.epoch_loop.restarting = False

    # A `Checkpoint` is called last: what other callbacks note of a step is in what is saved.
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if stepped:  # within accumulated micro-batches nothing can be resumed
            n = self.every_n_train_steps
            self._due = self._due or (n is not None and trainer.global_step % n == 0)
            if not validation_follows(trainer, batch_idx):
                self._save(trainer, self._due)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        limits = (trainer.global_step == trainer.max_steps, trainer.current_epoch + 1 == trainer.max_epochs)
        self._epoch_over = True
        self._save(trainer, self._due or self._time_is_up(trainer) or trainer.should_stop or any(limits))
        self._epoch_over = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._epoch_over:
            loops = checkpoint["loops"]["fit_loop"]
            counts, batches = loops["epoch_progress"].values(), loops["epoch_loop.batch_progress"]
            # Lightning counts the epoch only after this hook.
            if trainer.is_last_batch:  # what is saved stands at the beginning of the next one
                for epochs in counts:
                    epochs["completed"] = epochs["processed"]
                batches["current"] = dict.fromkeys(batches["current"], 0)
                batches["is_last_batch"] = False
            else:  # the fit ends within an epoch; prolonged, it goes on there
                for epochs in counts:
                    epochs["processed"] = epochs["completed"]

    def _save(self, trainer: Trainer, due: bool) -> None:
        told = self._agreed(trainer)
        if (due or told) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(RunFolder.of(trainer).last_checkpoint, weights_only=False)
            self._due, self._saved_at = False, time.monotonic()
        if told:
            number = self.signal.received or signal.SIGTERM  # it may have come to another rank
            rank_zero_info(
                f"{signal.Signals(number).name} ended the fit after step {trainer.global_step}; checkpoints/last.ckpt "
                "holds it, `--ckpt_path last` goes on."
            )
            raise SystemExit(128 + number)

    def _time_is_up(self, trainer: Trainer) -> bool:
        if self.every_n_train_steps is not None:
            return False
        late = time.monotonic() - self._saved_at >= self.every_n_seconds
        # Ranks write together, and their clocks differ.
        return late if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(late, all=False)

    def _agreed(self, trainer: Trainer) -> bool:
        told = self.signal.received is not None
        if trainer.world_size == 1:
            return told
        # Agreeing makes a GPU wait, so there only as often as is logged.
        seldom = 1 if trainer.strategy.root_device.type == "cpu" else trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step - self._asked < seldom and not self._epoch_over:
            return False
        self._asked = trainer.global_step
        return trainer.strategy.reduce_boolean_decision(told, all=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signal.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signal.restore()


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
        write_atomically(trainer)
        self.dirpath = str(RunFolder.of(trainer).checkpoints)
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        upper = trainer.callback_metrics.get("val/own_violation_upper_95")
        if upper is not None and float(upper) <= pl_module.max_violation_rate:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Nothing: it is validations that find feasible weights."""


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether Lightning may validate right after this batch: at the end of an epoch or of the fit, or before."""
    counted = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    often = trainer.val_check_batch
    return trainer.is_last_batch or trainer.should_stop or (often is not None and (counted + 1) % often == 0)


def write_atomically(trainer: Trainer) -> None:
    """Let the trainer write checkpoints by `AtomicCheckpointIO`, unless another plugin was chosen."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
