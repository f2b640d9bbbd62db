"""The base of everything that watches a noise optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from constrained_diffusion.datamodules.prompts import Job
from constrained_diffusion.noise_optimization.optimizer import Run
from constrained_diffusion.noise_optimization.record import Record


class Optimized(NamedTuple):
    """What `predict_step` of a noise optimisation returns: one record per job."""

    jobs: Sequence[Job]
    records: Sequence[Record]


class NoiseCallback(Callback):
    """Sees every evaluation of a batch; `DirectNoiseOptimization` calls these hooks on all callbacks of this kind."""

    def on_batch_begin(self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run) -> None:
        """React to a batch that begins, or goes on after an interruption (`run.evaluations` > 0)."""

    def on_evaluation(
        self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run, clean: dict[int, Tensor]
    ) -> None:
        """React to one evaluation: `clean` maps the rows that still ran to their present samples."""

    def finished_jobs(self, trainer: Trainer) -> set[str]:
        """Return the keys of jobs whose results are kept, and which need not be done again."""
        return set()

    def interrupted(self, trainer: Trainer, jobs: Sequence[Job]) -> dict[str, Any] | None:
        """Return the state of a run of just these jobs that was interrupted, for `Run.load_state_dict`."""
        return None
