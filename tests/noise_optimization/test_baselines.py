"""Best-of-N by counting, loss guidance on Gaussian data, where tilting by a linear reward has a closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.diffusion.sampler import Sampler, sample
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.noise_optimization.baselines import best_of_n, loss_guided

MEAN, VARIANCE = 0.5, 0.36
SLOPE = torch.tensor([0.8, -0.4], dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(x: Tensor) -> Tensor:
    return x @ SLOPE


# ------------------------------------------------------------------------------------------------------------ best of n


def test_each_row_keeps_its_best_draw() -> None:
    values = torch.tensor([[1.0, 9.0, 3.0], [5.0, 2.0, 3.0], [4.0, 8.0, 3.0]])  # three draws of three rows
    draws = [row[:, None, None] * torch.ones(3, 1, 2) for row in values]
    seen: list[list[str]] = []

    def sample(noise: Tensor, context: list[str]) -> Tensor:
        seen.append(context)
        return 2 * noise

    best, reward = best_of_n(sample, lambda x, context: x.mean((1, 2)) / 2, draws, ["a", "b", "c"])
    assert reward.tolist() == [5.0, 9.0, 3.0]
    assert best[:, 0, 0].tolist() == [10.0, 18.0, 6.0]
    assert best.shape == (3, 1, 2)
    assert seen == [["a", "b", "c"]] * 3


def test_draws_are_taken_one_after_the_other_without_gradient() -> None:
    given = (torch.ones(2, 3, requires_grad=True) * i for i in range(4))
    best, reward = best_of_n(lambda z, _: z * 1.0, lambda x, _: x.sum(1), given, [None, None])
    assert reward.tolist() == [9.0, 9.0]
    assert not best.requires_grad


def test_no_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one draw of noise, got none"):
        best_of_n(lambda z, _: z, lambda x, _: x, [], [])


# -------------------------------------------------------------------------------------------------------- loss guidance


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("samples", [1, 4])
def test_a_linear_reward_shifts_the_mean_of_gaussian_data(
    schedule: VariancePreserving, exact: Any, kind: Any, scale: float, samples: int
) -> None:
    """N(mean, v) weighted by exp(scale b x) is N(mean + scale v b, v): its denoiser is known exactly."""
    schedule = VariancePreserving(schedule.alphas_cumprod, kind)
    guided = loss_guided(exact(schedule, MEAN, VARIANCE), schedule, linear, scale, samples)
    tilted = exact(schedule, MEAN + scale * VARIANCE * SLOPE, VARIANCE)
    for t in (0, 30, 99):
        noisy, timesteps = draw(4, 2), torch.full((4,), t)
        torch.testing.assert_close(
            tuple(guided(noisy, timesteps)), tuple(tilted(noisy, timesteps)), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_move_along_the_reward_and_further_with_the_scale(
    schedule: VariancePreserving, exact: Any, clip: bool, eta: float
) -> None:
    sampler = Sampler(25, eta, clip_sample=clip)
    z = draw(500, 1 + sampler.injecting_steps(schedule), 2)
    predict = exact(schedule, MEAN, VARIANCE)
    plain = sample(predict, schedule, z, sampler)
    rewards = [linear(plain).mean().item()]
    for scale in (0.5, 1.0, 2.0):
        shift = (sample(loss_guided(predict, schedule, linear, scale), schedule, z, sampler) - plain).mean(0)
        assert torch.cosine_similarity(shift, SLOPE, dim=0) > 0.999
        assert (shift / (scale * VARIANCE * SLOPE)).tolist() == pytest.approx([1.0, 1.0], abs=0.1)
        rewards.append(rewards[0] + linear(shift).item())
    assert rewards == sorted(rewards)


def test_many_samples_average_a_quadratic_reward_over_the_spread(schedule: VariancePreserving, exact: Any) -> None:
    """For x ~ N(m, s^2), log E exp(-(x - c)^2 / 2) has the gradient -(m - c) / (1 + s^2), s^2 = 1 - abar here."""
    predict, c = exact(schedule, MEAN, VARIANCE), 2.0

    def reward(x: Tensor) -> Tensor:
        return -(x - c).square().sum(1) / 2

    for t in (5, 60):
        noisy, timesteps = draw(3, 1), torch.full((3,), t)
        plain = predict(noisy, timesteps).clean
        one, many = (loss_guided(predict, schedule, reward, 1.0, n)(noisy, timesteps).clean - plain for n in (1, 3000))
        ratio = (many / one).flatten().tolist()
        assert ratio == pytest.approx([1 / (2 - schedule.alphas_cumprod[t].item())] * 3, rel=0.1)
        few = loss_guided(predict, schedule, reward, 1.0, 2)(noisy, timesteps).clean - plain
        assert few.isfinite().all()
        if t == 5:  # a small spread: even two are close to the mean itself
            torch.testing.assert_close(few, one, rtol=0.2, atol=1e-3)


def test_a_rows_keys_make_its_guidance_its_own(schedule: VariancePreserving, exact: Any) -> None:
    def guided(noisy: Tensor, keys: list[int] | None) -> Tensor:
        predict = loss_guided(
            exact(schedule, MEAN, VARIANCE), schedule, lambda x: -(x - 1).square().sum(1), 1.0, 3, keys=keys
        )
        return predict(noisy, torch.full((len(noisy),), 50)).clean

    noisy = draw(3, 2)
    together = guided(noisy, [11, 12, 13])
    torch.testing.assert_close(guided(noisy[1:], [12, 13]), together[1:])
    torch.testing.assert_close(guided(noisy.flip(0), [13, 12, 11]), together.flip(0))
    assert not torch.allclose(guided(noisy[1:], [11, 12]), together[1:])
    assert torch.equal(guided(noisy, None), guided(noisy, [0, 1, 2]))
    with pytest.raises(ValueError, match="keys needs one entry per row of the noise, 3, but has 2"):
        guided(noisy, [1, 2])


def test_guidance_is_keyed_and_leaves_no_graph(schedule: VariancePreserving, exact: Any) -> None:
    def sharp(x: Tensor) -> Tensor:
        return -10 * (x - 1).square().sum(1)

    predict, noisy, timesteps = exact(schedule, MEAN, VARIANCE), draw(2, 2), torch.tensor([50, 50])
    first, again, other = (loss_guided(predict, schedule, sharp, 1.0, 3, seed)(noisy, timesteps) for seed in (0, 0, 1))
    assert torch.equal(first.clean, again.clean)
    assert not torch.allclose(first.clean, other.clean)
    with torch.no_grad():
        inside = loss_guided(predict, schedule, sharp, 1.0, 3)(noisy, timesteps)
    assert torch.equal(inside.clean, first.clean)
    assert not any(part.requires_grad for part in first)
    assert math.isfinite(first.clean.sum().item())
