"""What a user sees while noise is optimised: one bar with the step, the mean reward and the median P(z)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from constrained_diffusion.noise_optimization.hooks import NoiseCallback
from constrained_diffusion.noise_optimization.jobs import Job
from constrained_diffusion.noise_optimization.optimizer import Run


class NoiseProgress(NoiseCallback):
    """Draws the bar on the first rank, one per batch."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: Any = None

    def on_batch_begin(self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run) -> None:
        if not trainer.is_global_zero:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[figures]}"))
        self._bar.start()
        words = f"{len(jobs)} samples" if len(jobs) > 1 else "1 sample"
        self._task = self._bar.add_task(
            words, total=run.settings.steps + 1, completed=run.evaluations, figures="starting"
        )

    def on_evaluation(
        self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run, clean: dict[int, Tensor]
    ) -> None:
        if self._bar is None:
            return
        start, reward = (fmean(record.rewards[i] for record in run.records) for i in (0, -1))
        probability = median(math.exp(record.log_probabilities[-1]) for record in run.records)
        figures = f"reward {start:.4g} -> {reward:.4g}, P(z) {probability:.2g}"
        completed = run.settings.steps + 1 if run.finished else run.evaluations
        self._bar.update(self._task, completed=completed, figures=figures)
        if run.finished:
            self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None
