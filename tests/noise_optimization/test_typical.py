"""P(z) as a metric: batches add up, and drifted noise is told apart."""

from __future__ import annotations

import math

import pytest
import torch

from constrained_diffusion.noise_optimization.typical import NoiseProbability

SIZE = 4096


def gaussian(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, SIZE // 2, generator=torch.Generator().manual_seed(seed))


def test_batches_add_up() -> None:
    whole, parts = NoiseProbability(permutations=5), NoiseProbability(permutations=5)
    noise = gaussian(6)
    whole.update(noise)
    for part in noise.split(4):
        parts.update(part)
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-5)


def test_gaussian_noise_is_typical_and_zeros_and_drifted_noise_are_not() -> None:
    metric = NoiseProbability(permutations=5)
    metric.update(gaussian(20))
    assert metric.compute()["typical_rate"] == 1.0
    metric.update(torch.zeros(5, SIZE))
    metric.update(1.3 * gaussian(15, seed=1))
    found = metric.compute()
    assert found["typical_rate"] == 0.5
    # zeros: M = 1 in every order, so p2 = 2 exp(-m (sqrt 2 - 1 - sqrt(k / m))^2 / 2) with m = n / 2
    m = SIZE / 2
    assert found["smallest"] == pytest.approx(2 * math.exp(-m * (2**0.5 - 1 - (2 / m) ** 0.5) ** 2 / 2), rel=1e-3)


def test_nothing_measured_and_a_size_that_k_does_not_divide() -> None:
    with pytest.raises(ValueError, match="has seen no noise yet"), pytest.warns(UserWarning, match="compute"):
        NoiseProbability().compute()
    with pytest.raises(ValueError, match="k must divide the number of noise variables of a sample, 9"):
        NoiseProbability().update(torch.zeros(1, 9))
