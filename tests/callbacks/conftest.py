"""A fit whose validations find what a test wants them to find."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion


class Scripted(ConstrainedDiffusion):
    """Trains like any other; in epoch e the held-out loss is `script[e][0]` and all samples have brightness `[1]`."""

    script: list[tuple[float, float]]

    def held_out_loss(self, batch: Any) -> Tensor:
        return torch.tensor(self.script[self.current_epoch][0])

    def sample(self, seeds: Any, weights: Any = "ema", sampler: Any = None, condition: Any = None) -> Tensor:
        return torch.full((len(seeds), 1, 8, 8), self.script[self.current_epoch][1])


@pytest.fixture
def scripted(tiny_denoiser: Any, too_bright: Any) -> Callable[..., Scripted]:
    """`scripted([(held-out loss, brightness), ...])`: a module for so many epochs; samples above 0.4 violate."""

    def make(script: list[tuple[float, float]], **settings: Any) -> Scripted:
        defaults = {"max_violation_rate": 0.5, "optimizer": partial(torch.optim.SGD, lr=0.01)}
        module = Scripted(tiny_denoiser(), too_bright(), **{**defaults, **settings})
        module.script = script
        return module

    return make
