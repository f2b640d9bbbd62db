"""How far a fit is: one bar for all of it in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from constrained_diffusion.callbacks.run.pace import Pace, figures
from constrained_diffusion.fine_tuning.step_log import at_log_step
from constrained_diffusion.runtime.tracking import in_words


class _Progress(ProgressBar):
    """What both show of a fit: step, epoch, time left, and the figures of the last log step.

    What a module logs with `prog_bar=True` Lightning reads back in every step, and a GPU has to wait; here it is read
    at log steps alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.figures: dict[str, Any] = {}
        self.pace = Pace(0.0, 0, 0)

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pace = Pace(time.monotonic(), trainer.global_step, trainer.estimated_stepping_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(outputs, Mapping) and at_log_step(trainer):
            log = getattr(pl_module, "step_log", None)
            self.figures = dict(figures(outputs.get("terms", {}) if log is None else log.read().values))
            if "violating" not in self.figures:  # room for what a pretraining measures
                logged = self.get_metrics(trainer, pl_module)
                self.figures |= {name: value for name, value in logged.items() if name != "v_num"}

    def epoch(self, trainer: Trainer) -> str:
        """Return the epoch, counted from 1."""
        of = "" if trainer.max_epochs in (None, -1) else f" of {trainer.max_epochs}"
        return f"epoch {trainer.current_epoch + 1}{of}"

    def time_left(self, trainer: Trainer) -> str:
        left = self.pace.seconds_left(trainer.global_step, time.monotonic())
        return "" if left is None else f"{in_words(left)} left"


class FitProgress(_Progress):
    """One bar from the first step to the last; it ends before the final sentences are printed.

    While it is drawn, log messages go through it: otherwise it would overwrite them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._task: Any = None
        self._redirected: list[logging.StreamHandler[Any]] = []
        self._stream: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._open(self.epoch(trainer), self.pace.total, trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(description=self.epoch(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        shown = " ".join(f"{name} {_short(value)}" for name, value in self.figures.items())
        self._show(completed=trainer.global_step, left=self.time_left(trainer), figures=shown)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._show(description="validating")
        else:
            self._open("validating", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self._show(advance=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._show(description=self.epoch(trainer))
        else:
            self._close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("testing", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._show(advance=1)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()  # what is printed at the end of the test stays

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("predicting", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._show(advance=1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        print(*args, **kwargs)  # rich puts it above the bar

    def _open(self, description: str, total: float, completed: int = 0) -> None:
        if not self.enabled or self._bar is not None:
            return
        rest = TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        columns = (BarColumn(10), MofNCompleteColumn(), TextColumn("{task.fields[left]}"), rest)
        self._stream = sys.stderr
        self._bar = Progress(TextColumn("{task.description}"), *columns, redirect_stderr=self._stream.isatty())
        self._task = self._bar.add_task(
            description, total=total if total < float("inf") else None, completed=completed, left="", figures=""
        )
        self._bar.start()
        handlers = [
            each for name in ("", *logging.root.manager.loggerDict) for each in logging.getLogger(name).handlers
        ]
        self._redirected = [
            each for each in handlers if isinstance(each, logging.StreamHandler) and each.stream is self._stream
        ]
        for handler in self._redirected:
            handler.setStream(sys.stderr)

    def _show(self, **fields: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, **fields)

    def _close(self) -> None:
        if self._bar is None:
            return
        self._bar.stop()
        self._bar = None
        for handler in self._redirected:
            handler.setStream(self._stream)


class FitLines(_Progress):
    """A line at each tenth of a fit, and between them where a tenth takes long; for logs, which are not a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._said, self._said_at = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._said, self._said_at = self.pace.first, self.pace.began

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step, now = trainer.global_step, time.monotonic()
        if not self.enabled or not self.pace.line_is_due(step, now, self._said, self._said_at):
            return
        self._said, self._said_at = step, now
        of = f" of {self.pace.total:.0f}" if self.pace.total < float("inf") else ""
        figures = [f"{name} {_short(value)}" for name, value in self.figures.items()]
        words = [f"step {step}{of}", self.epoch(trainer), *figures, self.time_left(trainer)]
        rank_zero_info(", ".join(word for word in words if word))

    def print(self, *args: Any, **kwargs: Any) -> None:
        print(*args, **kwargs)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
