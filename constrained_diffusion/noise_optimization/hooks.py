"""The base of everything that watches a noise optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from constrained_diffusion.noise_optimization.jobs import Job
from constrained_diffusion.noise_optimization.optimizer import Run
from constrained_diffusion.noise_optimization.record import Record

PATIENCE = timedelta(days=365)  #: for which ranks wait for each other at the end


class Optimized(NamedTuple):
    """What `predict_step` of a noise optimisation returns: one record per job."""

    jobs: Sequence[Job]
    records: Sequence[Record]


class Interrupted(NamedTuple):
    """A run that was interrupted, to go on with."""

    jobs: Sequence[Job]  #: all of the run's, of which some may be finished
    state: dict[str, Any]  #: for `Run.load_state_dict`


class NoiseCallback(Callback):
    """Sees every evaluation of a batch; `DirectNoiseOptimization` calls these hooks on all callbacks of this kind."""

    def on_batch_begin(self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run) -> None:
        """React to a batch that begins, or goes on after an interruption (`run.evaluations` > 0)."""

    def on_evaluation(
        self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run, clean: dict[int, Tensor]
    ) -> None:
        """React to one evaluation: `clean` maps the rows that still ran to their present samples."""

    def on_failure(self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run) -> None:
        """React to a step that raises: rows that have stopped, perhaps in this very step, are still finished."""

    def finished_jobs(self, trainer: Trainer, jobs: Sequence[Job]) -> set[str]:
        """Return the keys of those jobs whose results are kept, and which need not be done again."""
        return set()

    def interrupted(self, trainer: Trainer, batch: Sequence[Job]) -> Interrupted | None:
        """Return a run of jobs of this batch, of all or some, that was interrupted."""
        return None


class AllRanks:
    """Waits until all ranks are there, however long it takes: their shares of the jobs may end hours apart.

    The process group's own barrier would abort them all after its timeout, half an hour unless set.
    """

    def __init__(self) -> None:
        on = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._group: Any = torch.distributed.new_group(timeout=PATIENCE, backend="gloo") if on else None

    def wait(self) -> None:
        if self._group is not None:
            torch.distributed.barrier(self._group)


def writing_rank(trainer: Trainer) -> int:
    """Return the rank that keeps the results of this rank's jobs: itself, or the first where all have the same."""
    return trainer.global_rank if getattr(trainer.datamodule, "sharded", True) else 0  # type: ignore[attr-defined]
