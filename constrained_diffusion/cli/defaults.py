"""What the command line gives a Trainer beside what a config says: loggers and callbacks."""

from __future__ import annotations

import contextlib
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from constrained_diffusion.callbacks import (
    AskedGrids,
    BestFeasible,
    Certificate,
    Export,
    FitStatus,
    GradientCheck,
    KeepLog,
    LastCheckpoint,
    NoiseReport,
    NoiseResults,
    Overlays,
    Report,
    Results,
    SampleGrid,
    SampleWriter,
)
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.noise_optimization.module import DirectNoiseOptimization
from constrained_diffusion.runtime.run_folder import RunFolder


def loggers(folder: RunFolder, resumed: int | None, own: Any) -> list[Any]:
    """Return the CSV file, which resuming and the report read, and the config's own loggers, else TensorBoard's."""
    run = folder.path
    ours: list[Any] = [CSVLogger(run, name="", version="", flush_logs_every_n_steps=10)]
    if own not in (None, True):
        return [*ours, *(own if isinstance(own, list) else [own])]
    with contextlib.suppress(ModuleNotFoundError):  # an extra; the CSV file has the same numbers
        ours.append(
            TensorBoardLogger(
                run, name=folder.tensorboard.name, version="", purge_step=resumed, default_hp_metric=False
            )
        )
    return ours


def callbacks(model: LightningModule, config: str, fit: bool) -> list[Callback]:
    """Return what runs beside a config's own callbacks.

    Args:
        model: of the config.
        config: its name.
        fit: whether the command is `fit`.
    """
    everyone: list[Callback] = [KeepLog(), LastCheckpoint(), Export()] if fit else []
    if isinstance(model, DirectNoiseOptimization):
        return [NoiseResults(), NoiseReport()]
    if not isinstance(model, ConstrainedDiffusion):
        return everyone
    fitting: list[Callback] = [GradientCheck(), FitStatus(), BestFeasible()] if fit else [SampleWriter(), Certificate()]
    return [*everyone, *fitting, SampleGrid(), AskedGrids(), Overlays(), Results(config), Report()]
