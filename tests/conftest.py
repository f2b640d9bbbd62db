"""Tiny real components that many tests share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.datamodules.base import DiffusionDataModule, TensorRows
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion import NoiseSchedule
from constrained_diffusion.objectives import Constraint


class TinyNetwork(nn.Module):
    """A convolution that knows the time: the smallest thing that denoises 8 x 8 images."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.time = nn.Linear(1, width)
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        shift = self.time(timesteps[:, None].to(noisy.dtype) / 100)[..., None, None]
        return self.last(torch.nn.functional.silu(self.first(noisy) + shift))


class TooBright(Constraint):
    """g = mean pixel - 0.4."""

    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1) - 0.4


class TinyData(DiffusionDataModule):
    """64 random 8 x 8 images, half of them bright."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"batch_size": 16, "val_samples": 8, "test_samples": 8, "eval_batch_size": 8, **kwargs})

    def build(self) -> tuple[TensorRows, TensorRows]:
        images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        images[::2] *= 0.5
        return TensorRows(images[:64]), TensorRows(images[64:])


def make_denoiser(seed: int = 0, prediction_type: Any = "epsilon") -> Denoiser:
    """A fresh, always equal tiny denoiser with a schedule of 100 steps."""
    torch.manual_seed(seed)
    schedule = NoiseSchedule(torch.cos(torch.linspace(0.02, 1.5, 100)) ** 2, prediction_type)
    return Denoiser(TinyNetwork(), schedule, sample_shape=(1, 8, 8))


@pytest.fixture
def tiny_denoiser() -> Any:
    """The factory `make_denoiser(seed=0, prediction_type="epsilon")`."""
    return make_denoiser


@pytest.fixture
def tiny_data() -> Any:
    """The class of the tiny data module."""
    return TinyData


@pytest.fixture
def too_bright() -> Any:
    """The class of the tiny constraint."""
    return TooBright


@pytest.fixture
def fit(tmp_path: Any) -> Any:
    """`fit(module, data, callbacks=(), ckpt_path=None, **trainer)`: a silent CPU fit; returns the trainer."""
    from lightning.pytorch import Trainer

    def run(module: Any, data: Any, callbacks: Any = (), ckpt_path: str | None = None, **settings: Any) -> Trainer:
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        defaults = {"accelerator": "cpu", "max_epochs": 2, "enable_checkpointing": False, "default_root_dir": tmp_path}
        trainer = Trainer(**{**quiet, **defaults, **settings}, callbacks=list(callbacks))
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return trainer

    return run
