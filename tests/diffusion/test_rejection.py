"""Rejection on a Gaussian, whose accepted samples are a truncated normal, and whose draws are geometric."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from scipy import stats
from torch import Tensor

from constrained_diffusion.diffusion.rejection import (
    Rejection,
    RejectionResult,
    attempt_seed,
    check_rejection,
    rejection_sample,
)
from constrained_diffusion.objectives import Constraint, StepRecord
from constrained_diffusion.runtime.randomness import keyed_normal

THRESHOLD = 0.3
SHARE = float(stats.norm.cdf(THRESHOLD))


def draw(seeds: Sequence[int], places: Sequence[int] = ()) -> Tensor:
    """Normal numbers `(N, 2)`, one row per seed."""
    return keyed_normal([(11, seed) for seed in seeds], (2,))


def feasible(samples: Tensor) -> Tensor:
    return samples[:, 0] <= THRESHOLD


@pytest.fixture(scope="module")
def found() -> RejectionResult:
    return rejection_sample(draw, feasible, range(3000))


def test_accepted_samples_follow_the_truncated_normal(found: RejectionResult) -> None:
    first, second = found.samples.double().T.numpy()
    assert found.accepted.all()
    assert first.max() <= THRESHOLD
    assert stats.kstest(first, stats.truncnorm(-float("inf"), THRESHOLD).cdf).pvalue > 0.01
    assert stats.kstest(second, stats.norm.cdf).pvalue > 0.01  # what the constraint does not look at stays as it was
    assert stats.kstest(draw(range(3000))[:, 0].numpy(), stats.truncnorm(-float("inf"), THRESHOLD).cdf).pvalue < 1e-9


def test_draws_are_geometric(found: RejectionResult) -> None:
    assert found.draws.shape == (3000,)
    counts = torch.bincount(found.draws.clamp(max=6), minlength=7)[1:].double().numpy()
    expected = 3000 * stats.geom(SHARE).pmf([1, 2, 3, 4, 5, 6])
    expected[-1] = 3000 * stats.geom(SHARE).sf(5)
    assert stats.chisquare(counts, expected).pvalue > 0.01


def test_a_sample_depends_on_its_seed_alone(found: RejectionResult) -> None:
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    for parts in (order.split(400), order.split(7), order.split(1)):
        apart = [rejection_sample(draw, feasible, part.tolist()) for part in parts]
        for name in RejectionResult._fields:
            together = torch.cat([getattr(each, name) for each in apart])
            assert torch.equal(together, getattr(found, name)[order]), name


def test_where_nothing_is_rejected_the_seeds_draw_once() -> None:
    calls: list[list[int]] = []

    def noted(seeds: list[int], places: list[int]) -> Tensor:
        calls.append(seeds)
        return draw(seeds)

    found = rejection_sample(noted, lambda samples: torch.ones(len(samples)), [5, 3, 9])
    assert calls == [[5, 3, 9]]
    assert torch.equal(found.samples, draw([5, 3, 9]))
    assert found.draws.tolist() == [1, 1, 1]


def test_only_rejected_rows_are_drawn_again_and_together() -> None:
    calls: list[list[int]] = []
    drawn_for: list[list[int]] = []

    def noted(seeds: list[int], places: list[int]) -> Tensor:
        calls.append(seeds)
        drawn_for.append(places)
        return draw(seeds)

    seeds = list(range(40))
    found = rejection_sample(noted, feasible, seeds)
    assert len(calls) == found.draws.max() > 2
    for attempt, call in enumerate(calls):
        still_open = [place for place, n in enumerate(found.draws) if n > attempt]
        assert drawn_for[attempt] == still_open
        assert call == [attempt_seed(seeds[place], attempt) for place in still_open]
    last = [attempt_seed(seed, int(n) - 1) for seed, n in zip(seeds, found.draws, strict=True)]
    assert torch.equal(found.samples, draw(last))


@pytest.mark.parametrize("max_draws", [1, 2, 5])
def test_an_infeasible_seed_is_given_up(max_draws: int) -> None:
    found = rejection_sample(draw, lambda x: (x[:, 0] > 50) | (x[:, 0] == draw([1])[0, 0]), [0, 1, 2], max_draws)
    assert found.accepted.tolist() == [False, True, False]
    assert found.draws.tolist() == [max_draws, 1, max_draws]


def test_samples_that_are_no_numbers_are_never_accepted() -> None:
    found = rejection_sample(lambda seeds, _: draw(seeds) * float("nan"), feasible, [0, 1], 3)
    assert found.accepted.tolist() == [False, False]


def test_the_seeds_of_attempts_are_all_different() -> None:
    seeds = [attempt_seed(seed, attempt) for seed in range(2000) for attempt in range(50)]
    assert len(set(seeds)) == 100_000
    assert [attempt_seed(seed, 0) for seed in range(5)] == list(range(5))
    assert min(attempt_seed(seed, attempt) for seed in range(2000) for attempt in range(1, 50)) > 10**9
    assert max(seeds) < 2**63


@pytest.mark.parametrize(("result", "said"), [(torch.ones(3, 2), r"shape \(3,\), got \(3, 2\)"), (torch.ones(1), "3")])
def test_a_verdict_of_another_shape_is_refused(result: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rejection_sample(draw, lambda samples: result, [0, 1, 2])
    with pytest.raises(ValueError, match="max_draws must be at least 1"):
        rejection_sample(draw, feasible, [0], 0)


class OfSamples(Constraint):
    def forward(self, clean: Tensor) -> Tensor:
        return clean[:, 0]


class OfSteps(Constraint):
    needs_step_record = True

    def forward(self, record: StepRecord) -> Tensor:  # type: ignore[override]
        return record.noise[:, 0]


def test_what_rejection_needs() -> None:
    check_rejection([OfSamples(), OfSteps()])
    with pytest.raises(ValueError, match="the model has none; give `constraints`"):
        check_rejection([])
    with pytest.raises(ValueError, match="OfSteps judges none"):
        check_rejection([OfSteps()])
    helping = OfSamples()
    helping.has_verdict = False
    with pytest.raises(ValueError, match="OfSteps, OfSamples judges none"):
        check_rejection([OfSteps(), helping])
    with pytest.raises(ValueError, match="max_draws must be at least 1, the draw that every seed has anyway; got 0"):
        Rejection(0)
