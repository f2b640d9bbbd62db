"""A module that was trained for two epochs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

ADAM = partial(torch.optim.Adam, lr=1e-2)
SAMPLER = Sampler(steps=4)


@pytest.fixture
def trained(tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any) -> Any:
    """`trained(**settings)`: a module after two epochs, and its trainer."""

    def make(data: Any = None, trainer: dict[str, Any] | None = None, **settings: Any) -> tuple[Any, Trainer]:
        given = {"denoiser": tiny_denoiser(), "constraints": too_bright(), "sampler": SAMPLER, "optimizer": ADAM}
        module = ConstrainedDiffusion(**{**given, "formulation": "penalty", "ema_decay": 0.8, **settings})
        return module, fit(module, data or tiny_data(), **(trainer or {}))

    return make
