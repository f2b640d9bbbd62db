"""A smooth network that depends on what it is shown and told, and both samplers run with it: ours and diffusers'."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.denoisers.schedule import read_schedule
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.prediction import Predict, Prediction


def draw_normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_network(shown: Tensor, time: Tensor) -> Tensor:
    """The network's output for `(B, D)` at times `(B,)` or a scalar."""
    phase = time.to(shown).reshape(-1, 1) / 400
    return 0.5 * torch.sin(1.3 * shown + phase) + 0.2 * shown.flip(-1) + 0.1 * phase


def predict_by_network(schedule: NoiseSchedule, limit: float | None = None) -> Predict:
    """A denoiser with that network, whose clean sample is clamped to [-limit, limit]."""

    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        output = smooth_network(schedule.network_input(noisy, timesteps), schedule.network_time(timesteps))
        clean = schedule.to_clean(output, noisy, timesteps)
        clean = clean if limit is None else clean.clamp(-limit, limit)
        return Prediction(output, schedule.to_noise(output, noisy, timesteps), clean)

    return predict


def run_diffusers(scheduler: Any, z: Tensor, **grid: Any) -> Tensor:
    """Sample `(B, D)` with diffusers' own scheduler, which is given the noises of `z` `(B, 1 + K, D)` in turn."""
    scheduler.set_timesteps(**grid)
    noises: Iterator[Tensor] = iter(z[:, 1:].unbind(1))
    x = z[:, 0] * float(getattr(scheduler, "init_noise_sigma", 1.0))
    with pytest.MonkeyPatch.context() as patch:
        # Where ours injects none, theirs is multiplied by 0, or by the rounding error of one.
        drawn = lambda shape, **_: next(noises, torch.full(shape, 0.1, dtype=torch.float64))  # noqa: E731
        patch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", drawn, raising=False)
        for t in scheduler.timesteps:
            shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(smooth_network(shown, t), t, x).prev_sample
    assert next(noises, None) is None
    return x


def read_scheduler(scheduler: Any, **settings: Any) -> NoiseSchedule:
    return read_schedule({**scheduler.config, "_class_name": type(scheduler).__name__}, **settings)


@pytest.fixture(scope="session")
def draw() -> Any:
    """`draw(*shape, seed=0)`: normal numbers in double precision."""
    return draw_normal


@pytest.fixture(scope="session")
def network() -> Any:
    """`network(shown, time)`."""
    return smooth_network


@pytest.fixture(scope="session")
def predictor() -> Any:
    """`predictor(schedule, limit=None)`: a denoiser with that network."""
    return predict_by_network


@pytest.fixture(scope="session")
def diffusers_sample() -> Any:
    """`diffusers_sample(scheduler, z, **arguments of set_timesteps)`."""
    return run_diffusers


@pytest.fixture(scope="session")
def read() -> Any:
    """`read(scheduler, **settings)`: our noise schedule of a scheduler of diffusers'."""
    return read_scheduler
