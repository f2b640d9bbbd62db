"""Clopper-Pearson bounds against the beta quantiles of scipy, and the metric that carries one."""

import json

import pytest
import torch
from scipy import stats

from constrained_diffusion.statistics import (
    ViolationRate,
    clopper_pearson_interval,
    clopper_pearson_lower,
    clopper_pearson_upper,
    inverse_sampling_interval,
)

COUNTS = [
    (0, 1),
    (1, 1),
    (0, 512),
    (3, 10),
    (1, 2000),
    (25, 5000),
    (2500, 5000),
    (4999, 5000),
    (5000, 5000),
    (7, 10**5),
]


def beta_upper(k: int, n: int, confidence: float) -> float:
    return 1.0 if k == n else float(stats.beta.ppf(confidence, k + 1, n - k))


def beta_lower(k: int, n: int, confidence: float) -> float:
    return 0.0 if k == 0 else float(stats.beta.ppf(1 - confidence, k, n - k + 1))


@pytest.mark.parametrize("confidence", [0.95, 0.999, 0.5, 0.01])
@pytest.mark.parametrize(("k", "n"), COUNTS)
def test_one_sided_bounds_are_beta_quantiles(k: int, n: int, confidence: float) -> None:
    assert clopper_pearson_upper(k, n, confidence) == pytest.approx(beta_upper(k, n, confidence), abs=1e-9)
    assert clopper_pearson_lower(k, n, confidence) == pytest.approx(beta_lower(k, n, confidence), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), COUNTS)
def test_the_interval_is_the_one_of_scipy(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=rf"0 <= successes <= n with n >= 1, got {k} of {n}"):
        clopper_pearson_upper(k, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_in_percent_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=rf"between 0 and 1, for example 0.95, got {confidence}"):
        clopper_pearson_upper(1, 10, confidence)


def test_violation_rate_counts_over_batches() -> None:
    rate = ViolationRate()
    rate.update(torch.arange(40) < 3)
    rate.update(torch.arange(60) < 2)
    expected = {
        "violation_rate": 0.05,
        "violation_upper_95": pytest.approx(beta_upper(5, 100, 0.95), abs=1e-9),
        "n": 100,
    }
    assert rate.compute() == expected
    assert json.loads(json.dumps(rate.compute())) == rate.compute()
    rate.reset()
    rate.update(torch.tensor([False]))
    assert rate.compute()["n"] == 1
    assert rate.compute()["violation_upper_95"] == pytest.approx(0.95)


def test_violation_rate_survives_inference_mode() -> None:
    rate = ViolationRate()
    with torch.inference_mode():
        rate.reset()
        rate.update(torch.tensor([True]))
    rate.update(torch.tensor([False]))
    assert rate.compute()["violation_rate"] == 0.5


@pytest.mark.parametrize("wrong", [torch.tensor([0.3, -0.2]), torch.tensor([[True], [False]])])
def test_violation_rate_wants_one_bool_per_sample(wrong: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"bool tensor of shape \(B,\).*compare first"):
        ViolationRate().update(wrong)


def test_violation_rate_of_no_samples_is_an_error() -> None:
    rate = ViolationRate()
    rate.update(torch.zeros(0, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one sample, got none; call update"):
        rate.compute()


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 2), (1, 30), (10, 10), (64, 66), (200, 2000), (5000, 5031)])
def test_inverse_sampling_inverts_the_negative_binomial(k: int, n: int) -> None:
    low, high = inverse_sampling_interval(k, n)
    assert 0 < low < k / n <= high <= 1
    assert stats.nbinom(k, low).cdf(n - k) == pytest.approx(0.025, rel=1e-6)
    if n > k:
        assert stats.nbinom(k, high).sf(n - k - 1) == pytest.approx(0.025, rel=1e-6)
    else:
        assert high == 1.0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.88, 0.99])
def test_inverse_sampling_covers_the_share_as_often_as_it_says(share: float) -> None:
    trials = range(20, 20 + int(stats.nbinom(20, share).isf(1e-6)) + 1)
    weight = stats.nbinom(20, share).pmf([n - 20 for n in trials])
    held = [low <= share <= high for low, high in (inverse_sampling_interval(20, n) for n in trials)]
    assert 0.95 <= float((weight * held).sum()) + 1e-6 <= 1


def test_inverse_sampling_refuses_what_cannot_be() -> None:
    for successes, trials in ((0, 5), (6, 5)):
        with pytest.raises(ValueError, match=f"1 <= successes <= trials, got {successes} of {trials}"):
            inverse_sampling_interval(successes, trials)
