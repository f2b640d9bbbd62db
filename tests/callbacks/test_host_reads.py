"""Between log steps the host reads nothing of the device: a GPU would stop for it."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from constrained_diffusion.callbacks import (
    AugmentedLagrangian,
    DualAscent,
    FeasibilityGrowth,
    FitProgress,
    FitStatus,
    FixedPenalty,
    NuPI,
    PenaltyScheduler,
)
from constrained_diffusion.fine_tuning.loss import MinSNR
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

HOST = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "speed_parts" / "host.py"))
HostReads, BetweenLogSteps = HOST["HostReads"], HOST["BetweenLogSteps"]
SCHEDULE = {"every_n_steps": 1, "stop_below": 0.0}
CONTROLLERS: dict[str, Callable[[], Callback]] = {
    "release": lambda: PenaltyScheduler(**SCHEDULE),  # type: ignore[arg-type]
    "smoothed": lambda: PenaltyScheduler(smoothing=0.9, **SCHEDULE),  # type: ignore[arg-type]
    "stop": lambda: PenaltyScheduler(when_satisfied="stop", **SCHEDULE),  # type: ignore[arg-type]
    "growth": lambda: FeasibilityGrowth(every_n_steps=1),
    "fixed": FixedPenalty,
    "augmented": lambda: AugmentedLagrangian(every_n_steps=1),
    "ascent": DualAscent,
    "nu-PI": NuPI,
}
# What is read all the same, and lies on the host: where it is read, and how often in a step.
ORDER = {"keyed_sampler.py": 1}  # the rows to load
ON_THE_HOST = {
    "stop": {"delayed_flag.py": 1},  # the flag of the step before, which was copied
    "nu-PI": {"nupi_optimizer.py": 3},  # cooper asks whether its gains are 0
}


@pytest.mark.parametrize(
    ("controller", "formulation"),
    [*((name, "conditioned_algorithm1") for name in CONTROLLERS), ("release", "algorithm1"), ("release", "penalty")],
)
def test_a_step_reads_nothing(
    controller: str, formulation: str, tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any
) -> None:
    found = reads(controller, formulation, tiny_denoiser, too_bright, tiny_data, fit, accelerator="cpu")
    assert found == ORDER | ON_THE_HOST.get(controller, {})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_step_does_not_stop_a_gpu(
    controller: str, tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any
) -> None:
    """A read, or a copy that the host waits for, is an error in torch's sync debug mode."""
    reads(controller, "conditioned_algorithm1", tiny_denoiser, too_bright, tiny_data, fit, accelerator="gpu", devices=1)


def reads(
    controller: str, formulation: str, tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any, **settings: Any
) -> dict[str, float]:
    module = ConstrainedDiffusion(
        tiny_denoiser(),
        too_bright(),
        formulation,
        60,
        optimizer=partial(torch.optim.SGD, lr=1e-3),
        loss_weight=MinSNR(5.0),
    )
    watch = BetweenLogSteps()
    callbacks = [watch, FitStatus(), FitProgress(), CONTROLLERS[controller]()]
    quiet = {"enable_progress_bar": True, "log_every_n_steps": 100, "gradient_clip_val": 1.0, "max_epochs": 1}
    fit(module, tiny_data(val_samples=0), callbacks, **quiet, **settings)
    found: dict[str, float] = {}
    for place, often in watch.per_batch.items():
        file = Path(place.partition(":")[0]).name
        found[file] = found.get(file, 0) + often
    return found


@pytest.mark.parametrize(
    "read", [bool, float, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu]
)
def test_the_counter_sees_every_kind_of_read(read: Any) -> None:
    with HostReads() as counted:
        torch.ones(1).add(1)
        assert not counted.found
        read(torch.ones(1))
    assert sum(counted.found.values()) == 1
    assert next(iter(counted.found)).startswith(__file__)


@pytest.mark.parametrize("formulation", ["algorithm1", "conditioned_algorithm1"])
def test_a_log_step_reads_once(
    formulation: str, tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any, tmp_path: Path
) -> None:
    """Losses, terms, the progress bar and the log together, besides the order of the rows to load."""
    watch = BetweenLogSteps()
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), formulation, optimizer=partial(torch.optim.SGD, lr=0))
    callbacks = [watch, FitStatus(), FitProgress(), PenaltyScheduler(**SCHEDULE)]  # type: ignore[arg-type]
    settings = {"enable_progress_bar": True, "log_every_n_steps": 1, "max_epochs": 1, "gradient_clip_val": 1.0}
    fit(module, tiny_data(val_samples=0), callbacks, logger=CSVLogger(tmp_path), **settings)
    reads = {Path(place.partition(":")[0]).name: often for place, often in watch.per_batch.items()}
    assert reads == ORDER | {"step_log.py": 1}


def test_a_log_step_reads(tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any) -> None:
    """So that the tests above could fail."""
    watch = BetweenLogSteps()
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), optimizer=partial(torch.optim.SGD, lr=1e-3))
    fit(module, tiny_data(), [watch, FitStatus()], log_every_n_steps=1, max_epochs=1)
    assert sum(watch.per_batch.values()) > 0
