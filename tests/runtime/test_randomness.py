"""Keyed random numbers: independent, and the same however the work is split."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from constrained_diffusion.diffusion.sampler import SAMPLING
from constrained_diffusion.runtime.randomness import (
    keyed_generator,
    keyed_normal,
    mix,
    stratified_timesteps,
    token_timesteps,
)


def test_seeds_are_unique_and_use_all_their_bits() -> None:
    seeds = [mix(seed, step, row) for seed in range(4) for step in range(50) for row in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert stats.binomtest(ones, len(seeds)).pvalue > 1e-5, bit


def test_the_order_and_the_number_of_keys_count() -> None:
    keys = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (-1,), (0, -1)]
    assert len({mix(*key) for key in keys}) == len(keys)


def test_no_two_of_100000_evaluation_samples_share_their_noise() -> None:
    kept = {mix(SAMPLING, seed) & 0xFFFFFFFF for seed in range(100_000)}  # what torch's CPU generator keeps of a seed
    assert len(kept) == 100_000


def test_rows_of_neighbouring_keys_are_standard_normal_and_uncorrelated() -> None:
    n = 4000
    rows = keyed_normal([(seed, 1, step, row) for seed in (0, 1) for step in (0, 1) for row in (0, 1)], (n,))
    for row in rows:
        assert stats.kstest(row.double(), "norm").pvalue > 1e-4
    correlation = torch.corrcoef(rows.double()) - torch.eye(len(rows), dtype=torch.float64)
    assert correlation.abs().max().item() < 4.5 / n**0.5


def test_the_first_number_of_many_rows_is_standard_normal_too() -> None:
    first = keyed_normal([(3, row) for row in range(5000)], (1,))[:, 0]
    assert stats.kstest(first.double(), "norm").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1].item()) < 4.5 / 5000**0.5


@pytest.mark.parametrize("shape", [(1, 4, 4), (3,), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_is_the_same_in_every_batch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    keys = [(0, 5, row) for row in range(12)]
    whole = keyed_normal(keys, shape, dtype)
    assert whole.dtype == dtype
    for size in (1, 3, 4):
        pieces = [keyed_normal(keys[start : start + size], shape, dtype) for start in range(0, 12, size)]
        assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(keyed_normal(keys[::-1], shape, dtype), whole.flip(0))


def test_a_generator_is_its_keys() -> None:
    assert torch.equal(torch.rand(4, generator=keyed_generator(1, 2)), torch.rand(4, generator=keyed_generator(1, 2)))
    assert not torch.equal(
        torch.rand(4, generator=keyed_generator(1, 2)), torch.rand(4, generator=keyed_generator(2, 1))
    )


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    keyed_normal([(0, 1)], (4,))
    stratified_timesteps(0, 0, range(8), 8, 100)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------------------ timesteps


@pytest.mark.parametrize(("batch", "limit", "expected"), [(128, 800, 102), (10, 500, 5), (7, 300, 2), (4, 1000, 4)])
def test_the_number_of_rows_below_the_limit_is_fixed(batch: int, limit: int, expected: int) -> None:
    for step in range(200):
        timesteps = stratified_timesteps(0, step, range(batch), batch, 1000, limit)
        assert (timesteps < limit).sum().item() == expected
        assert timesteps.min() >= 0
        assert timesteps.max() < 1000


def test_the_last_stratum_below_the_limit_is_not_rounded_up_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 1 - 2.0**-53  # the largest number below 1
    monkeypatch.setattr(torch, "rand", lambda size, **settings: torch.full((size,), largest, dtype=torch.float64))
    timesteps = stratified_timesteps(0, 0, range(10), 10, 1000, 800)
    assert (timesteps < 800).sum().item() == 8
    assert timesteps.max() < 1000


def test_at_least_one_row_is_below_the_limit() -> None:
    assert stratified_timesteps(0, 0, range(2), 2, 1000, 10).min() < 10


@pytest.mark.parametrize("limit", [None, 60])
def test_timesteps_are_uniform_for_every_row(limit: int | None) -> None:
    steps, batch, total = 1500, 10, 100  # 10 rows, 6 of them below 60: the share is exact
    drawn = torch.stack([stratified_timesteps(1, step, range(batch), batch, total, limit) for step in range(steps)])
    for row in range(batch):
        assert stats.chisquare(torch.bincount(drawn[:, row].long(), minlength=total)).pvalue > 1e-4, row
    # All rows together are spread more evenly than chance, one per stratum: the statistic is far below its mean.
    counts = torch.bincount(drawn.flatten().long(), minlength=total)
    assert stats.chisquare(counts).pvalue > 0.05


def test_each_stratum_holds_one_row() -> None:
    timesteps = stratified_timesteps(0, 3, range(20), 20, 1000)
    assert sorted((timesteps // 50).tolist()) == list(range(20))


def test_timesteps_of_successive_steps_and_of_neighbouring_rows_are_unrelated() -> None:
    drawn = torch.stack([stratified_timesteps(0, step, range(64), 64, 1000) for step in range(400)]).double()
    for a, b in ((drawn[:-1, 0], drawn[1:, 0]), (drawn[:, 0], drawn[:, 1])):
        assert stats.spearmanr(a, b).pvalue > 1e-3


@pytest.mark.parametrize("limit", [None, 700])
def test_two_ranks_draw_what_one_draws(limit: int | None) -> None:
    one = stratified_timesteps(5, 9, range(32), 32, 1000, limit)
    two = [stratified_timesteps(5, 9, range(16 * r, 16 * r + 16), 32, 1000, limit) for r in (0, 1)]
    assert torch.equal(torch.cat(two), one)


def test_another_step_or_seed_draws_others() -> None:
    first = stratified_timesteps(0, 0, range(32), 32, 1000)
    assert not torch.equal(first, stratified_timesteps(0, 1, range(32), 32, 1000))
    assert not torch.equal(first, stratified_timesteps(1, 0, range(32), 32, 1000))


def tokens(share: float, rows: range = range(64), step: int = 3, batch: int = 64) -> torch.Tensor:
    own = stratified_timesteps(0, step, range(batch), batch, 1000)[rows.start : rows.stop]
    return token_timesteps(own, 12, share, 0, step, rows, batch, 1000)


def test_a_share_of_the_rows_has_levels_per_token() -> None:
    drawn, own = tokens(0.5), stratified_timesteps(0, 3, range(64), 64, 1000)
    shared = (drawn == own[:, None]).all(1)
    by_token = drawn[:, 1:-1].diff(dim=1).any(1)
    assert by_token.sum() == 16
    ends = ~shared & ~by_token
    assert 6 <= ends.sum() <= 16  # of 16 rows, in a quarter neither end is clean
    assert (drawn[ends][:, 1:-1] == own[ends][:, None]).all()
    assert ((drawn[ends][:, [0, -1]] == 0) | (drawn[ends][:, [0, -1]] == own[ends][:, None])).all()
    assert torch.equal(tokens(0.0), own[:, None].expand(64, 12))
    assert tokens(1.0)[:, 1:-1].diff(dim=1).any(1).sum() == 32


def test_levels_per_token_are_uniform_and_the_same_on_two_ranks() -> None:
    many = torch.cat([tokens(1.0, step=step) for step in range(60)])
    free = many[many[:, 1:-1].diff(dim=1).any(1)]
    assert stats.kstest(free.flatten().numpy() / 1000, "uniform").pvalue > 1e-3
    halves = torch.cat([tokens(0.5, range(32)), tokens(0.5, range(32, 64))])
    assert torch.equal(halves, tokens(0.5))
    with pytest.raises(ValueError, match="rows of a batch of 64, got"):
        tokens(0.5, range(32, 96))
