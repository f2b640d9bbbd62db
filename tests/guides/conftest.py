"""A tiny planner that knows noise levels per token."""

from __future__ import annotations

import pytest
import torch

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.domains.mazes.planners import TransformerPlanner


@pytest.fixture
def planner() -> Denoiser:
    torch.manual_seed(0)
    network = TransformerPlanner((6, 4, 2), width=16, depth=1, heads=2, feedforward=16)
    schedule = DiffusersSchedule({"num_train_timesteps": 100, "beta_schedule": "linear", "prediction_type": "sample"})
    units = Normalizer(mean=[0.1, -0.2], std=[1.5, 1.25])
    return Denoiser(network.eval().requires_grad_(False), schedule, units)
