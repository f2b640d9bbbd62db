from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from constrained_diffusion.denoisers import PretrainedDenoiser
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.export import export
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.normalizer import MeasuredNormalizer
from constrained_diffusion.domains.mazes.planners import RecurrentPlanner, TransformerPlanner

SMALL: list[Any] = [
    lambda: TransformerPlanner((6, 4, 2), width=16, depth=2, heads=2, feedforward=32, knots=3),
    lambda: RecurrentPlanner((6, 4, 2), network_size=4, state=8),
]


def planner(make: Any) -> Denoiser:
    torch.manual_seed(0)
    schedule = DiffusersSchedule({"num_train_timesteps": 100, "beta_schedule": "linear", "prediction_type": "sample"})
    return Denoiser(make(), schedule, MeasuredNormalizer(2))


@pytest.mark.parametrize("make", SMALL)
def test_one_level_for_all_tokens_is_that_level_for_each(make: Any) -> None:
    torch.manual_seed(0)
    network, plans = make(), torch.randn(3, 6, 4, 2)
    level = torch.tensor([3, 50, 99])
    assert torch.allclose(network(plans, level), network(plans, level[:, None].expand(3, 6)), atol=1e-6)
    other = level[:, None].repeat(1, 6)
    other[:, 2] = 0
    assert not torch.allclose(network(plans, level), network(plans, other), atol=1e-5)


def test_the_transformer_sees_the_whole_plan_and_the_recurrent_one_what_came_before() -> None:
    torch.manual_seed(0)
    plans, level = torch.randn(1, 6, 4, 2, requires_grad=True), torch.tensor([50])
    for make, sees_future in zip(SMALL, (True, False), strict=True):
        (gradient,) = torch.autograd.grad(make()(plans, level)[:, 2].sum(), plans)
        assert gradient[:, :3].abs().amin((0, 2, 3)).gt(0).all()
        assert bool(gradient[:, 3:].any()) is sees_future


def test_the_papers_size_is_counted_term_by_term() -> None:
    # 60 tokens of 10 frames of 6 channels; hidden width 512, state 128, embedding of the noise level 16.
    token, wide, state, level = 60, 512, 128, 16

    def linear(inside: int, outside: int) -> int:
        return inside * outside + outside

    def residual(inside: int, outside: int) -> int:
        shortcut = linear(inside, outside) if inside != outside else 0
        return linear(inside, outside) + linear(outside, outside) + shortcut

    before = residual(state + token + level, wide) + 2 * residual(wide, wide) + linear(wide, state)
    after = residual(state, wide) + 2 * residual(wide, wide) + linear(wide, state)
    cell = 3 * (2 * state * state + 2 * state)
    ours = before + after + cell + 2 * linear(level, level) + linear(state, token)
    network = RecurrentPlanner((62, 10, 6), network_size=16)
    assert sum(p.numel() for p in network.parameters()) == ours
    # The paper's base also makes its first state of the first observation, by an MLP 4-128-128-128; here the standing
    # first token tells it.
    first_state = linear(4, 128) + 2 * linear(128, 128)
    assert ours + first_state == pytest.approx(3.24e6, abs=5e3)


@pytest.mark.parametrize("make", SMALL)
def test_a_planner_is_exported_and_loaded_with_its_units(make: Any, tmp_path: Path) -> None:
    denoiser = planner(make)
    assert isinstance(denoiser.codec, MeasuredNormalizer)
    denoiser.codec.measure([0.5, -0.25], [1.5, 2.0])
    assert denoiser.sample_shape == (6, 4, 2)
    loaded = PretrainedDenoiser(str(export(denoiser, tmp_path / "planner")))
    plans, level = torch.randn(2, 6, 4, 2), torch.randint(100, (2, 6))
    assert torch.equal(loaded.predict(plans, level).clean, denoiser.predict(plans, level).clean)
    units = plans * torch.tensor([1.5, 2.0]) + torch.tensor([0.5, -0.25])
    assert torch.equal(loaded.codec.decode(plans), units)
    assert loaded.sample_shape == (6, 4, 2)


def test_moments_of_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match="MeasuredNormalizer has 2 channels, but the data has 3"):
        MeasuredNormalizer(2).measure([0.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match="expects std > 0"):
        MeasuredNormalizer(2).measure([0.0] * 2, [1.0, 0.0])


def test_a_transformer_learns_two_straight_lines() -> None:
    torch.manual_seed(0)
    denoiser = planner(SMALL[0])
    line = torch.linspace(-1, 1, 24)[:, None].expand(24, 2).reshape(6, 4, 2)
    optimizer = torch.optim.Adam(denoiser.network.parameters(), 3e-3)
    for _ in range(150):
        clean = torch.where(torch.rand(32, 1, 1, 1) < 0.5, line, -line)
        levels = torch.randint(100, (32, 6))
        noisy = denoiser.noise_schedule.add_noise(clean, torch.randn_like(clean), levels)
        loss = nn.functional.mse_loss(denoiser(noisy, levels), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.25  # of 1/3, the variance of the points
