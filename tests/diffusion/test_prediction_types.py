"""What a network may predict, in every family: outputs, clean samples and noises lead to each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.variance_exploding import VarianceExploding
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving

ABAR = torch.cos(torch.linspace(0.05, 1.5, 50, dtype=torch.float64)) ** 2
FAMILIES: dict[str, NoiseSchedule] = {
    "epsilon": VariancePreserving(ABAR, "epsilon"),
    "sample": VariancePreserving(ABAR, "sample"),
    "v_prediction": VariancePreserving(ABAR, "v_prediction"),
    "flow": FlowMatching(2.0),
    "edm": VarianceExploding(),
    "edm_v": VarianceExploding(kind="edm_v"),
    "consistency": VarianceExploding(kind="consistency", num_timesteps=40),
    "lcm": VariancePreserving(ABAR, "epsilon", boundary_scaling=10.0),
}


@pytest.fixture(params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[(64,), (16, 4)], ids=["rows", "tokens"])
def timesteps(request: pytest.FixtureRequest, name: str) -> Tensor:
    schedule = FAMILIES[name]
    values = torch.rand(*request.param, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return schedule.as_timesteps(1 + values * (schedule.num_timesteps - 1))


def test_the_target_gives_back_clean_sample_and_noise(name: str, timesteps: Tensor, draw: Any) -> None:
    schedule = FAMILIES[name]
    clean, noise = draw(*timesteps.shape, 3, 2), draw(*timesteps.shape, 3, 2, seed=1)
    noisy, output = schedule.add_noise(clean, noise, timesteps), schedule.target(clean, noise, timesteps)
    if name == "lcm":  # its clean sample is off by what leads to x_t at t = 0
        schedule = FAMILIES["epsilon"]
    held = clean + schedule.least_sigma * noise  # a consistency model's clean sample keeps the least noise
    torch.testing.assert_close(schedule.to_clean(output, noisy, timesteps), held, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.to_noise(output, noisy, timesteps), noise, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.from_clean(held, noisy, timesteps), output, rtol=1e-9, atol=1e-9)


def test_from_clean_is_the_inverse_of_to_clean_and_affine(name: str, timesteps: Tensor, draw: Any) -> None:
    schedule = FAMILIES[name]
    output, noisy, shift = (draw(*timesteps.shape, 3, 2, seed=seed) for seed in range(3))
    clean = schedule.to_clean(output, noisy, timesteps)
    torch.testing.assert_close(schedule.from_clean(clean, noisy, timesteps), output, rtol=1e-8, atol=1e-8)
    moved = schedule.from_clean(clean + shift, noisy, timesteps)
    apart = output + schedule.from_clean(shift, torch.zeros_like(noisy), timesteps)
    torch.testing.assert_close(moved, apart, rtol=1e-8, atol=1e-8)


def test_clean_sample_and_noise_make_the_noisy_one(name: str, timesteps: Tensor, draw: Any) -> None:
    schedule = FAMILIES[name]
    output, noisy = draw(*timesteps.shape, 3, 2), draw(*timesteps.shape, 3, 2, seed=1)
    clean, noise = schedule.to_clean(output, noisy, timesteps), schedule.to_noise(output, noisy, timesteps)
    if name == "lcm":
        clean = FAMILIES["epsilon"].to_clean(output, noisy, timesteps)
    signal, sigma = schedule.coefficients(timesteps, noisy)
    torch.testing.assert_close(signal * clean + (sigma - schedule.least_sigma) * noise, noisy, rtol=0, atol=1e-9)


def test_one_level_per_token_is_each_token_on_its_own(name: str, draw: Any) -> None:
    schedule = FAMILIES[name]
    at = schedule.as_timesteps(torch.linspace(1, schedule.num_timesteps - 1, 10, dtype=torch.float64)).reshape(2, 5)
    clean, noise, output = (draw(2, 5, 3, seed=seed) for seed in range(3))
    noisy = schedule.add_noise(clean, noise, at)
    for token in range(5):
        one = noisy[:, token], at[:, token]
        torch.testing.assert_close(schedule.add_noise(clean[:, token], noise[:, token], at[:, token]), one[0])
        for ask in (schedule.to_clean, schedule.to_noise, schedule.from_clean):
            torch.testing.assert_close(ask(output, noisy, at)[:, token], ask(output[:, token], *one))
        torch.testing.assert_close(schedule.network_input(noisy, at)[:, token], schedule.network_input(*one))
        torch.testing.assert_close(schedule.network_time(at)[:, token], schedule.network_time(at[:, token]))


def test_min_snr_weighs_an_error_of_the_clean_sample(name: str, timesteps: Tensor) -> None:
    """min(SNR, gamma) times the squared error of the clean sample, whatever the network returns."""
    schedule, gamma = FAMILIES[name], 5.0
    schedule = FAMILIES["epsilon"] if name == "lcm" else schedule
    at = timesteps.double()
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    snr = {
        "flow": lambda: ((1000 - at) / at) ** 2,
        "edm": lambda: (low + at / 999 * (high - low)) ** -14,
        "edm_v": lambda: (low + at / 999 * (high - low)) ** -14,
        "consistency": lambda: (low + at / 39 * (high - low)) ** -14,
    }.get(name, lambda: ABAR[timesteps] / (1 - ABAR[timesteps]))()
    clean, noisy = torch.zeros(*timesteps.shape, 1, dtype=torch.float64), torch.ones(*timesteps.shape, 1).double()
    wrong = schedule.from_clean(clean + 0.1, noisy, timesteps) - schedule.from_clean(clean, noisy, timesteps)
    for floor in (0.0, 1.0):
        weighted = schedule.loss_weight(timesteps, gamma, floor).double() * wrong[..., 0].square()
        torch.testing.assert_close(weighted, 0.01 * snr.clamp(floor, gamma), rtol=2e-4, atol=1e-12)


def test_weights_at_the_ends_are_numbers(name: str) -> None:
    schedule = FAMILIES[name]
    ends = schedule.as_timesteps(torch.tensor([0.0, schedule.num_timesteps - 1e-6], dtype=torch.float64))
    assert schedule.loss_weight(ends, 5.0, 1.0).isfinite().all()


@pytest.mark.parametrize("kind", ["flow", "edm", "edm_v", "consistency"])
def test_the_target_is_a_number_at_the_lowest_level(kind: str, draw: Any) -> None:
    schedule, lowest = FAMILIES[kind], torch.zeros(4, dtype=torch.float64)
    clean, noise = draw(4, 3), draw(4, 3, seed=1)
    output, noisy = schedule.target(clean, noise, lowest), schedule.add_noise(clean, noise, lowest)
    assert output.isfinite().all()
    torch.testing.assert_close(schedule.to_noise(output, noisy, lowest), noise, rtol=0, atol=1e-9)
    if kind == "consistency":  # any output means x itself
        assert torch.equal(schedule.to_clean(draw(4, 3, seed=2), noisy, lowest), noisy)
        assert torch.equal(schedule.from_clean(clean, noisy, lowest), torch.zeros_like(clean))
