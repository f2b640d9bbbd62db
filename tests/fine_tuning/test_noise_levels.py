"""Noise levels of training in every family: their distribution, and the same share below T_phi in each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from scipy.special import logit
from torch import Tensor, nn

from constrained_diffusion.batch import Batch
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.variance_exploding import VarianceExploding
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.fine_tuning.noising import LogitNormal, draw_held_out, draw_training

ROWS = 32
FAMILIES: dict[str, NoiseSchedule] = {
    "vp": VariancePreserving(torch.linspace(0.999, 0.001, 1000)),
    "flow": FlowMatching(3.0),
    "edm": VarianceExploding(),
    "consistency": VarianceExploding(num_timesteps=40, kind="consistency"),
}
DENSITIES = [None, LogitNormal(), LogitNormal(-0.8, 1.6)]


def timesteps(schedule: NoiseSchedule, low: int, density: LogitNormal | None, steps: int) -> list[Tensor]:
    """The timesteps of each of `steps` steps, as two ranks draw them."""
    denoiser = Denoiser(nn.Identity(), schedule, Normalizer(), (1,))
    batch, found = Batch(torch.zeros(ROWS // 2, 1)), []
    for step in range(steps):
        ranks = [draw_training(batch, denoiser, (5, step), (rank, 2), low, density=density) for rank in range(2)]
        found.append(torch.cat([rank.timesteps for rank in ranks]))
    return found


@pytest.fixture(params=list(FAMILIES))
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return FAMILIES[request.param]


@pytest.mark.parametrize("density", DENSITIES)
def test_the_levels_follow_their_distribution(schedule: NoiseSchedule, density: LogitNormal | None) -> None:
    total = schedule.num_timesteps
    drawn = torch.cat(timesteps(schedule, total, density, 60)).double()
    assert 0 <= drawn.min() <= drawn.max() < total
    if isinstance(schedule, FlowMatching):
        places = drawn / total
    else:  # which are whole: each stands for what is between it and the next
        assert torch.equal(drawn, drawn.floor())
        jitter = torch.rand(len(drawn), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        places = (drawn + jitter) / total
    expected: Any = stats.uniform.cdf
    if density is not None:
        expected = lambda place: stats.norm.cdf((logit(place) - density.mean) / density.std)  # noqa: E731
    assert stats.kstest(places.numpy(), expected).pvalue > 0.01
    shuffled = drawn.reshape(60, ROWS).diff(dim=1)  # the order says nothing
    assert 0.3 < (shuffled > 0).double().mean() < 0.7


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("share", [0.025, 0.3, 0.5, 0.975, 1.0])
def test_the_same_share_is_below_the_limit_in_each_step(
    schedule: NoiseSchedule, density: LogitNormal | None, share: float
) -> None:
    low = round(share * schedule.num_timesteps)
    below = [int((step < low).sum()) for step in timesteps(schedule, low, density, 100)]
    place = low / schedule.num_timesteps
    mass = place if density is None else float(stats.norm.cdf((logit(place) - density.mean) / density.std))
    assert set(below) == {max(round(ROWS * mass), 1)}


def test_a_wide_density_stays_on_the_schedule() -> None:
    density = LogitNormal(std=20.0)
    for schedule in FAMILIES.values():
        drawn = torch.cat(timesteps(schedule, schedule.num_timesteps, density, 20))
        assert drawn.max() < schedule.num_timesteps
        schedule.signal_and_sigma(drawn)


def test_quantile_and_distribution_function_are_inverse() -> None:
    density, share = LogitNormal(0.4, 0.7), torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(density.share(density.place(share)), share, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="std > 0, got 0"):
        LogitNormal(std=0)


def test_held_out_rows_have_targets_that_are_numbers(schedule: NoiseSchedule) -> None:
    """The first row of a data set is at the lowest level of all."""
    denoiser = Denoiser(nn.Identity(), schedule, Normalizer(), (1,))
    step = draw_held_out(Batch(torch.randn(64, 1)), denoiser, 0)
    assert step.timesteps[0] == 0
    assert schedule.target(step.clean, step.noise, step.timesteps).isfinite().all()
    spread = step.timesteps.double() / schedule.num_timesteps
    assert stats.kstest(spread.numpy(), stats.uniform.cdf).statistic < 0.06
