"""A module that was trained for two epochs, and a denoiser that is told what to draw."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.runtime.conditions import Labels
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows

ADAM = partial(torch.optim.Adam, lr=1e-2)
SAMPLER = Sampler(steps=4)
NOTHING = 3  #: the label of the empty condition


@pytest.fixture
def trained(tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any) -> Any:
    """`trained(**settings)`: a module after two epochs, and its trainer."""

    def make(data: Any = None, trainer: dict[str, Any] | None = None, **settings: Any) -> tuple[Any, Trainer]:
        given = {"denoiser": tiny_denoiser(), "constraints": too_bright(), "sampler": SAMPLER, "optimizer": ADAM}
        module = ConstrainedDiffusion(**{**given, "formulation": "penalty", "ema_decay": 0.8, **settings})
        return module, fit(module, data or tiny_data(), **(trainer or {}))

    return make


class Told(nn.Module):
    """A convolution that is told a label, and notes what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.shade, self.conv = nn.Embedding(NOTHING + 1, 1), nn.Conv2d(1, 1, 3, padding=1)
        self.told: list[list[int]] = []

    def forward(self, noisy: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        self.told.append(class_labels.tolist())
        output: Tensor = self.conv(noisy) + 0.5 * self.shade(class_labels)[..., None, None]
        return output


class ToldData(DiffusionDataModule):
    """48 images of the labels 0, 1 and 2 in turn; samples are asked for as 2, 0, 1, in turn."""

    def __init__(self, **settings: Any) -> None:
        given = {"batch_size": 12, "eval_batch_size": 4, "val_samples": 7, "test_samples": 7, "predict_samples": 7}
        super().__init__(**{**given, "conditions": Labels([2, 0, 1]), **settings})

    def build(self) -> tuple[TensorRows, TensorRows]:
        labels = torch.arange(48) % 3
        images = (
            torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * (labels + 1).view(-1, 1, 1, 1) / 3
        )
        return tuple(TensorRows(images[i], {"class_labels": labels[i]}) for i in (slice(36), slice(36, 48)))  # type: ignore[return-value]


@pytest.fixture
def told_denoiser() -> Any:
    """`told_denoiser(guidance_scale=1.0)`: a denoiser of three labels; 3 stands for none of them."""

    def make(guidance_scale: float = 1.0) -> Denoiser:
        torch.manual_seed(0)
        schedule = VariancePreserving(torch.cos(torch.linspace(0.02, 1.5, 100)) ** 2)
        null = {"class_labels": NOTHING}
        return Denoiser(Told(), schedule, None, (1, 8, 8), guidance_scale, null)

    return make


@pytest.fixture
def told_data() -> Any:
    """The class of its data module."""
    return ToldData
