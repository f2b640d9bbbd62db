"""Total variation against values by hand, its noise floor against a simulation, and the counts behind both."""

import json

import numpy as np
import pytest
import torch

from constrained_diffusion.domains.images.histogram import ClassCounts, total_variation, total_variation_noise_floor


def test_total_variation_by_hand() -> None:
    assert total_variation([1, 1, 2], [2, 1, 1]) == pytest.approx(0.25)
    assert total_variation([5, 0], [0, 3]) == 1.0
    assert total_variation(torch.tensor([10, 20, 30]), [1, 2, 3]) == pytest.approx(0, abs=1e-15)


def test_leaving_a_class_out_renormalises_the_rest() -> None:
    # without class 1: (1/4, 3/4) and (1/2, 1/2)
    assert total_variation([1, 96, 3], [20, 0, 20], leave_out=1) == pytest.approx(0.25)


def test_the_arguments_stay_as_they_are() -> None:
    counts = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    total_variation(counts, counts, leave_out=0)
    assert counts.tolist() == [1, 2, 3]


@pytest.mark.parametrize("weights", [[1] * 10, [5, 1, 1, 3, 9, 1, 1, 2, 2, 4]])
def test_noise_floor_against_a_simulation(weights: list[int]) -> None:
    n_a, n_b, generator = 800, 2000, np.random.default_rng(0)
    shares = np.array(weights, dtype=float)
    shares[4] = 0
    shares /= shares.sum()
    a = generator.multinomial(n_a, shares, size=4000) / n_a
    b = generator.multinomial(n_b, shares, size=4000) / n_b
    simulated = np.abs(a - b).sum(1).mean() / 2
    assert total_variation_noise_floor(weights, n_a, n_b, leave_out=4) == pytest.approx(simulated, rel=0.02)


def test_noise_floor_of_the_benchmark_is_about_two_percent() -> None:
    assert total_variation_noise_floor([500] * 10, 5000, 5000, leave_out=4) == pytest.approx(0.0226, abs=1e-4)


def test_errors() -> None:
    with pytest.raises(ValueError, match="as many classes in both, got 2 and 3"):
        total_variation([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="one of the classes 0 to 1, got 2"):
        total_variation([1, 2], [1, 2], leave_out=2)
    with pytest.raises(ValueError, match=r"at least one sample that is not left out, got \[0, 7\]"):
        total_variation([1, 2], [0, 7], leave_out=1)
    with pytest.raises(ValueError, match="at least 1 each, got 0 and 5"):
        total_variation_noise_floor([1, 2], 0, 5)


def test_class_counts() -> None:
    counts = ClassCounts(num_classes=4, confidence=0.5)
    counts.update(torch.tensor([0, 2, 2]), torch.tensor([0.95, 0.4, 0.5]))
    counts.update(torch.tensor([3]), torch.tensor([0.9]))
    expected = {"class_histogram": [1, 0, 2, 1], "non_digit_rate": 0.25, "confident_rate": 0.25}
    assert json.loads(json.dumps(counts.compute())) == expected


def test_class_counts_of_no_samples_are_an_error() -> None:
    counts = ClassCounts(num_classes=4, confidence=0.5)
    counts.update(torch.zeros(0, dtype=torch.long), torch.zeros(0))
    with pytest.raises(ValueError, match="at least one sample, got none"):
        counts.compute()
