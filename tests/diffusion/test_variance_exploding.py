"""EDM and consistency models against their formulas in double precision, and on one Gaussian."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from constrained_diffusion.diffusion.prediction import Predict, Prediction
from constrained_diffusion.diffusion.sampler import Sampler, sample
from constrained_diffusion.diffusion.variance_exploding import VarianceExploding

LOW, HIGH, DATA = 0.002, 80.0, 0.5


def levels(spacing: str, steps: int) -> np.ndarray:
    if spacing == "exponential":
        return HIGH * (LOW / HIGH) ** np.linspace(0, 1, steps)
    return (HIGH ** (1 / 7) + np.linspace(0, 1, steps) * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
@pytest.mark.parametrize("kind", ["edm", "edm_v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("to_zero", [True, False])
def test_euler_on_sigmas_in_double_precision(
    spacing: str, kind: Any, eta: float, to_zero: bool, draw: Any, predictor: Any, network: Any
) -> None:
    schedule = VarianceExploding(LOW, HIGH, DATA, kind=kind)
    sampler = Sampler(9, eta, spacing, set_alpha_to_one=to_zero)
    z = draw(3, 1 + sampler.injecting_steps(schedule), 4)
    sigmas = levels(spacing, 9)
    x, sign = z[:, 0] * np.hypot(1, HIGH), {"edm": 1, "edm_v": -1}[kind]
    for i, (sigma, following) in enumerate(zip(sigmas, [*sigmas[1:], 0.0 if to_zero else LOW], strict=True)):
        total = sigma**2 + DATA**2
        output = network(x / np.sqrt(total), torch.tensor(np.float32(np.log(sigma) / 4)))
        clean = DATA**2 / total * x + sign * sigma * DATA / np.sqrt(total) * output
        up = eta * np.sqrt(max(following**2 * (sigma**2 - following**2), 0.0)) / sigma
        x = x + (x - clean) / sigma * (np.sqrt(following**2 - up**2) - sigma)
        x = x + up * z[:, 1 + i] if up > 0 and 1 + i < z.shape[1] else x
    torch.testing.assert_close(sample(predictor(schedule), schedule, z, sampler), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_consistency_sampling_in_double_precision(steps: int, draw: Any, predictor: Any, network: Any) -> None:
    schedule = VarianceExploding(LOW, HIGH, DATA, 7.0, 40, "consistency")
    sampler, z = Sampler(steps, clip_sample=False), draw(3, steps, 4)
    sigmas = [float(sigma) for sigma in levels("karras", 40)[:: 40 // steps][:steps]]
    assert sampler.injecting_steps(schedule) == sum(sigma > LOW * 1.001 for sigma in sigmas[1:])
    x = z[:, 0] * HIGH
    for i, sigma in enumerate(sigmas):
        output = network(x / np.hypot(sigma, DATA), torch.tensor(np.float32(250 * np.log(sigma))))
        above = sigma - LOW
        x = DATA**2 / (above**2 + DATA**2) * x + DATA * above / np.hypot(sigma, DATA) * output
        if i + 1 < steps and sigmas[i + 1] > LOW * 1.001:
            x = x + np.sqrt(sigmas[i + 1] ** 2 - LOW**2) * z[:, 1 + i]
    z = z[:, : 1 + sampler.injecting_steps(schedule)]
    torch.testing.assert_close(sample(predictor(schedule), schedule, z, sampler), x, rtol=0, atol=1e-10)


def exact(schedule: VarianceExploding, mean: float, variance: float) -> Predict:
    """The exact denoiser of data ~ N(mean, variance)."""

    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        _, sigma = schedule.coefficients(timesteps, noisy)
        clean = mean + variance / (variance + sigma**2) * (noisy - mean)
        output = schedule.from_clean(clean, noisy, timesteps)
        return Prediction(output, schedule.to_noise(output, noisy, timesteps), clean)

    return predict


def test_one_gaussian_in_closed_form(draw: Any) -> None:
    schedule, z = VarianceExploding(), draw(5, 1, 1)
    sigmas = [*levels("karras", 12), 0.0]
    a, b = np.hypot(1, HIGH), 0.0
    for sigma, following in pairwise(sigmas):
        # (x - x-hat) / sigma = sigma (x - m) / (v + sigma^2)
        step = (following - sigma) * sigma / (0.16 + sigma**2)
        a, b = a * (1 + step), b * (1 + step) - step * 1.5
    found = sample(exact(schedule, 1.5, 0.16), schedule, z, Sampler(12))
    torch.testing.assert_close(found, a * z[:, 0] + b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_marginal_is_kept(eta: float, draw: Any) -> None:
    schedule, sampler, n = VarianceExploding(), Sampler(400, eta), 4000
    z = draw(n, 1 + sampler.injecting_steps(schedule), 1)
    drawn = sample(exact(schedule, 1.5, 0.16), schedule, z, sampler)
    assert drawn.mean().item() == pytest.approx(1.5, abs=4 * 0.4 / n**0.5)
    assert drawn.var().item() == pytest.approx(0.16, abs=4 * 0.16 * (2 / n) ** 0.5)


@pytest.mark.parametrize("settings", [{"sigma_min": 0.0}, {"sigma_max": 0.001}, {"num_timesteps": 1}, {"rho": 0.0}])
def test_settings_out_of_range_are_refused(settings: Any) -> None:
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max, sigma_data and rho above 0"):
        VarianceExploding(**settings)
