"""Gaussian data with its exact denoiser, which several tests sample from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving


@pytest.fixture
def schedule() -> VariancePreserving:
    """A cosine schedule of 100 steps for noise-predicting networks."""
    return VariancePreserving(torch.cos(torch.linspace(0.05, 1.5, 100, dtype=torch.float64)) ** 2)


@pytest.fixture
def exact() -> Any:
    """`exact(schedule, mean, variance)`: the denoiser of data ~ N(mean, variance), whatever the network predicts."""

    def make(schedule: VariancePreserving, mean: float, variance: float) -> Any:
        def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
            signal, sigma = schedule.coefficients(timesteps, noisy)
            total = signal**2 * variance + sigma**2
            noise = sigma * (noisy - signal * mean) / total
            clean = (signal * variance * noisy + sigma**2 * mean) / total
            velocity = signal * noise - sigma * clean
            output = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[schedule.prediction_type]
            return Prediction(output, noise, clean)

        return predict

    return make
