"""DDPM's family against the formulas of Euler, Euler ancestral and LCM in double precision, and without any signal."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.sampler import Sampler, sample
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving

SD: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
T = 1000


def levels(ratios: np.ndarray, spacing: str, curve: str | None, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and sigmas of Euler: sigma / s of all T levels, spaced, and then perhaps put onto a curve."""
    times = {
        "leading": np.arange(steps)[::-1] * (T // steps),
        "trailing": np.round(np.arange(T, 0, -T / steps)) - 1,
        "linspace": np.linspace(T - 1, 0, steps),
    }[spacing]
    sigmas = np.interp(times, np.arange(T), ratios)
    if curve is None:
        return times, sigmas
    to, back = {"karras": (lambda v: v ** (1 / 7), lambda v: v**7), "exponential": (np.log, np.exp)}[curve]
    sigmas = back(np.linspace(to(sigmas[0]), to(sigmas[-1]), steps))
    return np.interp(np.log(sigmas), np.log(ratios), np.arange(T)), sigmas


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("curve", [None, "karras", "exponential"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("zero", [True, False])
def test_euler_in_double_precision(
    spacing: str, curve: str | None, kind: str, eta: float, zero: bool, draw: Any, predictor: Any, network: Any
) -> None:
    name = "EulerAncestralDiscreteScheduler" if eta else "EulerDiscreteScheduler"
    curves = {f"use_{curve}_sigmas": True} if curve else {}
    if curve and eta:
        name = "EulerDiscreteScheduler"  # the ancestral one has no curves; the formulas are the same
    own = {"timestep_spacing": spacing, "prediction_type": kind, "rescale_betas_zero_snr": zero, **curves}
    schedule, sampler = DiffusersSchedule({"_class_name": name, **SD, **own}), Sampler(7, eta)
    abar = schedule.alphas_cumprod.double().numpy()
    times, sigmas = levels(np.sqrt((1 - abar) / abar), spacing, curve, 7)
    z = draw(3, 1 + sampler.injecting_steps(schedule), 4)
    x = z[:, 0] * (sigmas[0] if spacing != "leading" else np.hypot(1, sigmas[0]))
    for i, (t, sigma, following) in enumerate(zip(times, sigmas, [*sigmas[1:], 0.0], strict=True)):
        output = network(x / np.hypot(1, sigma), torch.tensor(t, dtype=torch.float64))
        clean = x - sigma * output
        if kind == "v_prediction":
            clean = x / (sigma**2 + 1) - output * sigma / np.hypot(1, sigma)
        up = eta * np.sqrt(following**2 * (sigma**2 - following**2) / sigma**2)
        x = x + (x - clean) / sigma * (np.sqrt(following**2 - up**2) - sigma)
        x = x + up * z[:, 1 + i] if up > 0 else x
    found = sample(predictor(schedule), schedule, z, sampler)
    assert (found - x).abs().max() <= 1e-10 * x.abs().max()


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_lcm_in_double_precision(steps: int, draw: Any, predictor: Any, network: Any) -> None:
    schedule = DiffusersSchedule({"_class_name": "LCMScheduler", **SD, "original_inference_steps": 50})
    sampler = Sampler(steps)
    abar, z = schedule.alphas_cumprod.double().numpy(), draw(3, steps, 4)
    times = (np.arange(50, 0, -1) * 20 - 1)[[i * 50 // steps for i in range(steps)]]
    assert sampler.injecting_steps(schedule) == steps - 1
    x = z[:, 0]
    for i, t in enumerate(times):
        clean = (x - np.sqrt(1 - abar[t]) * network(x, torch.tensor(t))) / np.sqrt(abar[t])
        scaled = 10.0 * t
        x = scaled / np.sqrt(scaled**2 + 0.25) * clean + 0.25 / (scaled**2 + 0.25) * x
        if i + 1 < steps:
            x = np.sqrt(abar[times[i + 1]]) * x + np.sqrt(1 - abar[times[i + 1]]) * z[:, 1 + i]
    torch.testing.assert_close(sample(predictor(schedule), schedule, z, sampler), x, rtol=0, atol=1e-10)


def test_a_noise_prediction_without_any_signal_is_refused() -> None:
    settings = {**SD, "rescale_betas_zero_snr": True, "_class_name": "DDIMScheduler"}
    with pytest.raises(ValueError, match=r"alpha-bar ends in 0 .*expected prediction_type v_prediction or sample"):
        DiffusersSchedule({**settings, "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="alpha-bar ends in 0"):
        VariancePreserving([0.5, 0.0])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_velocity_without_any_signal(eta: float, draw: Any, predictor: Any, diffusers_sample: Any) -> None:
    """At alpha-bar = 0 the velocity is -x_0, and the first step leads on from it."""
    settings = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    schedule = DiffusersSchedule({"_class_name": "DDIMScheduler", **settings, "timestep_spacing": "trailing"})
    last, (clean, noise) = torch.tensor([T - 1] * 2), draw(2, 2, 3)
    assert schedule.alphas_cumprod[-1] == 0
    assert torch.equal(schedule.add_noise(clean, noise, last), noise)
    assert torch.equal(schedule.target(clean, noise, last), -clean)
    assert torch.equal(schedule.to_clean(-clean, noise, last), clean)
    assert torch.equal(schedule.to_noise(-clean, noise, last), noise)
    first, following = Sampler(5, eta).pairs(schedule)[0]
    signal, direction, std = Sampler(5, eta).coefficients(schedule, (first, following))
    assert (signal, first.sigma) == (following.signal, 1.0)
    assert np.hypot(direction, std) == pytest.approx(following.sigma, abs=1e-12)
    assert std == pytest.approx(eta * following.sigma, abs=1e-12)  # sigma_t = 1 and s_t = 0
    scheduler = diffusers.DDIMScheduler(**settings, timestep_spacing="trailing", clip_sample=False)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = schedule.alphas_cumprod.double(), torch.tensor(1.0)
    z, sampler = draw(3, 1, 4), Sampler(5, clip_sample=False)
    expected = diffusers_sample(scheduler, z, num_inference_steps=5)
    torch.testing.assert_close(sample(predictor(schedule), schedule, z, sampler), expected, rtol=0, atol=1e-10)
