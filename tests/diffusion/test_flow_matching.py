"""Flow matching against Euler's formula, and against known answers: one Gaussian, and a mixture of two by scipy."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.prediction import Predict, Prediction
from constrained_diffusion.diffusion.sampler import Sampler, sample

MEAN, VARIANCE = 1.5, 0.16


def grid(shift: float, spacing: str, steps: int, total: int = 1000) -> np.ndarray:
    """u from 1 to 0; the list that diffusers trains on is shifted too, so that the end of "training" is so twice."""
    shifted = lambda u: shift * u / (1 + (shift - 1) * u)  # noqa: E731
    last = {"linear": 1 / steps, "training": shifted(1 / total)}[spacing]
    return np.array([*shifted(np.linspace(1, last, steps)), 0.0])


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("spacing", ["linear", "training"])
@pytest.mark.parametrize("time_scale", [1.0, 0.001])
def test_euler_in_double_precision(
    shift: float, spacing: str, time_scale: float, draw: Any, predictor: Any, network: Any
) -> None:
    schedule, sampler = FlowMatching(shift, time_scale=time_scale), Sampler(9, spacing=spacing)
    z = draw(3, 1, 4)
    x, levels = z[:, 0], grid(shift, spacing, 9)
    for u, following in pairwise(levels):
        x = x + (following - u) * network(x, torch.tensor(np.float32(1000 * u * time_scale)))
    torch.testing.assert_close(sample(predictor(schedule), schedule, z, sampler), x, rtol=0, atol=1e-10)


def of_velocity(schedule: FlowMatching, velocity: Any) -> Predict:
    """The denoiser whose output is `velocity(x, u)`."""

    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        output = velocity(noisy, float(timesteps[0]) / schedule.num_timesteps)
        clean = schedule.to_clean(output, noisy, timesteps)
        return Prediction(output, schedule.to_noise(output, noisy, timesteps), clean)

    return predict


def slope(u: float, variance: float = VARIANCE) -> float:
    """E[eps - x_0 | x_t] of data ~ N(m, v) is slope(u) (x_t - (1 - u) m) - m."""
    return (u - (1 - u) * variance) / ((1 - u) ** 2 * variance + u**2)


def of_gaussian(x: Any, u: float) -> Any:
    return slope(u) * (x - (1 - u) * MEAN) - MEAN


def closed_form(levels: np.ndarray) -> tuple[float, float]:
    """Euler's recursion on one Gaussian is affine: the sample is A z + B."""
    a, b = 1.0, 0.0
    for u, following in pairwise(levels):
        growth = 1 + (following - u) * slope(u)
        a, b = a * growth, b * growth + (following - u) * (-MEAN - slope(u) * (1 - u) * MEAN)
    return a, b


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_one_gaussian_its_gradient_and_the_best_noise_in_closed_form(shift: float, draw: Any) -> None:
    schedule, sampler = FlowMatching(shift), Sampler(12)
    a, b = closed_form(grid(shift, "linear", 12))
    predict, z = of_velocity(schedule, of_gaussian), draw(5, 1, 1).requires_grad_()
    found = sample(predict, schedule, z, sampler)
    torch.testing.assert_close(found, a * z[:, 0] + b, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    torch.testing.assert_close(gradient, torch.full_like(z, a), rtol=0, atol=1e-12)
    # The reward -(x - c)^2 - w z^2 is largest at z = A (c - B) / (A^2 + w).
    c, w = -0.7, 0.3
    best = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([best], max_iter=50, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = ((sample(predict, schedule, best, sampler) - c).square() + w * best[:, 0].square()).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)
    assert best.item() == pytest.approx(a * (c - b) / (a**2 + w), abs=1e-8)


def of_mixture(x: Any, u: float) -> Any:
    """The velocity of 0.3 N(-2, 0.25) + 0.7 N(1, 0.09)."""
    exp = torch.exp if isinstance(x, Tensor) else np.exp
    evidence, velocity = [], []
    for weight, mean, variance in ((0.3, -2.0, 0.25), (0.7, 1.0, 0.09)):
        spread, away = (1 - u) ** 2 * variance + u**2, x - (1 - u) * mean
        evidence.append(weight / spread**0.5 * exp(-away * away / (2 * spread)))
        velocity.append(slope(u, variance) * away - mean)
    return (evidence[0] * velocity[0] + evidence[1] * velocity[1]) / (evidence[0] + evidence[1])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_mixture_is_the_solution_of_its_ode_at_first_order(shift: float) -> None:
    schedule, z = FlowMatching(shift), torch.linspace(-2, 2, 15, dtype=torch.float64)
    exact = solve_ivp(lambda u, x: of_mixture(x, u), (1.0, 0.0), z.numpy(), "DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
    errors = []
    for steps in (100, 200, 400, 800):
        found = sample(of_velocity(schedule, of_mixture), schedule, z[:, None, None], Sampler(steps))
        errors.append(np.abs(found[:, 0].numpy() - exact).max())
    assert errors[-1] < 0.02
    ratios = np.array(errors[:-1]) / errors[1:]
    np.testing.assert_allclose(ratios[1:], 2, rtol=0.1)  # half the step, half the error


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_marginal_is_kept(eta: float, draw: Any) -> None:
    schedule, sampler, n = FlowMatching(), Sampler(400, eta), 4000
    z = draw(n, 1 + sampler.injecting_steps(schedule), 1)
    drawn = sample(of_velocity(schedule, of_gaussian), schedule, z, sampler)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=4 * (VARIANCE / n) ** 0.5)
    assert drawn.var().item() == pytest.approx(VARIANCE, abs=4 * VARIANCE * (2 / n) ** 0.5)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_a_flow_injects_noise_where_eta_says_so(eta: float) -> None:
    schedule, sampler = FlowMatching(), Sampler(4, eta)
    assert sampler.injecting_steps(schedule) == 3
    for pair in sampler.pairs(schedule)[:-1]:
        (_, _, u), (_, s, v) = pair
        std = eta * v / u * math.sqrt(u**2 - ((1 - u) / s * v) ** 2)
        expected = s, math.sqrt(v**2 - std**2), std
        assert sampler.coefficients(schedule, pair) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("settings", [{"shift": 0.0}, {"num_timesteps": 0}, {"time_scale": -1.0}])
def test_settings_out_of_range_are_refused(settings: Any) -> None:
    with pytest.raises(ValueError, match="shift, num_timesteps and time_scale above 0"):
        FlowMatching(**settings)


def test_whole_timesteps_are_as_exact_as_fractions() -> None:
    signal, sigma = FlowMatching().signal_and_sigma(torch.tensor([1, 333]), torch.float64)
    assert sigma.tolist() == [0.001, 0.333]
    assert signal.tolist() == [1 - 0.001, 1 - 0.333]
