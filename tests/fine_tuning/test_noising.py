"""What a training step draws: which rows are told nothing, and how noise levels are spread."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from constrained_diffusion.batch import Batch, NoisyBatch
from constrained_diffusion.fine_tuning.noising import LogitNormal, draw_held_out, draw_training, seed_networks

NOTHING = 3


def batch(count: int = 16, **settings: Any) -> Batch:
    clean = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(clean, {"class_labels": torch.arange(count) % 3}, **settings)


def dropped(denoiser: Any, number: int, share: float = 0.3, rank: tuple[int, int] = (0, 1), seed: int = 0) -> Tensor:
    step = draw_training(batch(), denoiser, (seed, number), rank, 60, condition_dropout=share)
    assert step.condition is not None
    return step.condition["class_labels"] == NOTHING


def test_a_share_of_the_rows_is_told_nothing(told_denoiser: Any) -> None:
    denoiser, share = told_denoiser(), 0.3
    rows = torch.cat([dropped(denoiser, number, share) for number in range(250)])
    assert abs(float(rows.float().mean()) - share) < 4 * (share * (1 - share) / len(rows)) ** 0.5
    assert not dropped(denoiser, 0, 0.0).any()
    assert dropped(denoiser, 0, 1.0).all()


def test_which_rows_is_keyed_by_seed_step_and_row(told_denoiser: Any) -> None:
    denoiser = told_denoiser()
    first = dropped(denoiser, 5)
    assert torch.equal(first, dropped(denoiser, 5))
    assert not torch.equal(first, dropped(denoiser, 6))
    assert not torch.equal(first, dropped(denoiser, 5, seed=1))
    assert torch.equal(first, dropped(denoiser, 5, rank=(0, 2)))  # row j of the first rank is row j of the batch
    assert not torch.equal(first, dropped(denoiser, 5, rank=(1, 2)))


def test_the_other_rows_and_the_frozen_model_are_told_what_was_said(told_denoiser: Any) -> None:
    given = batch()
    step = draw_training(given, told_denoiser(), (0, 0), (0, 1), 60, condition_dropout=0.5)
    assert given.condition is not None
    assert step.condition is not None
    assert step.teacher is not None
    found, asked = step.condition["class_labels"], given.condition["class_labels"]
    assert 0 < int((found == NOTHING).sum()) < 16
    assert torch.equal(found[found != NOTHING], asked[found != NOTHING])
    assert torch.equal(step.teacher["class_labels"], asked)
    teacher = {"class_labels": torch.full((16,), 2)}
    step = draw_training(batch(teacher=teacher), told_denoiser(), (0, 0), (0, 1), 60, condition_dropout=0.5)
    assert step.teacher is teacher


def test_a_latent_that_is_known_is_not_made_again(told_denoiser: Any) -> None:
    latent = torch.randn(16, 1, 8, 8)
    for step in (
        draw_training(batch(latent=latent), told_denoiser(), (0, 0), (0, 1), 60),
        draw_held_out(batch(latent=latent), told_denoiser(), 0),
    ):
        assert torch.equal(step.clean, latent)
        assert torch.equal(step.data, batch().clean)


# ---------------------------------------------------------------- noise levels


def test_half_of_the_levels_is_below_the_mean_of_the_logits() -> None:
    density = LogitNormal(mean=0.7, std=1.3)
    shares = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    expected = Normal(torch.tensor(0.7).double(), torch.tensor(1.3).double()).icdf(shares).sigmoid()
    torch.testing.assert_close(density.place(shares), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(density.share(density.place(shares)), shares)
    assert torch.equal(density.place(torch.tensor([0.0, 1.0])).isfinite(), torch.tensor([True, True]))


@pytest.mark.parametrize("max_timestep", [30, 60, 100])
def test_levels_are_spread_as_the_density_says(told_denoiser: Any, max_timestep: int) -> None:
    density, rows = LogitNormal(mean=-0.5, std=0.8), 400

    def step(number: int) -> NoisyBatch:
        drawn = batch(rows)
        return draw_training(drawn, told_denoiser(), (0, number), (0, 1), max_timestep, density=density)

    logit = (torch.tensor(max_timestep / 100).double().logit() + 0.5) / 0.8
    below = round(rows * float(torch.special.ndtr(logit)))
    for number in range(3):
        assert int((step(number).highest < max_timestep).sum()) == below
    edges = torch.arange(1, 100).double()
    found = (step(0).timesteps[:, None] < edges).double().mean(0)  # an integer timestep: rounded down
    expected = torch.special.ndtr(((edges / 100).logit() + 0.5) / 0.8)
    assert float((found - expected).abs().max()) < 2 / rows  # one level per stratum


def test_a_density_without_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="LogitNormal expects std > 0, got 0"):
        LogitNormal(std=0)


# ---------------------------------------------------------------- keys


def test_held_out_rows_without_numbers_have_levels_by_their_place(tiny_denoiser: Any) -> None:
    clean = torch.rand(4, 1, 8, 8)
    numbered, unnumbered = (
        draw_held_out(Batch(clean, rows=numbers), tiny_denoiser(), 3) for numbers in (torch.arange(4), None)
    )
    assert torch.equal(unnumbered.timesteps, numbered.timesteps)
    assert torch.equal(unnumbered.noise, numbered.noise)
    assert len(set(unnumbered.timesteps.tolist())) == 4


def test_each_rank_and_step_draws_its_own_dropout() -> None:
    found = []
    for seed, number, rank in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)):
        seed_networks((seed, number), rank)
        found.append(float(torch.rand(())))
    assert found[0] == found[-1]
    assert len(set(found)) == 4
