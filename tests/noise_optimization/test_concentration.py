"""The bounds by hand, by simulation, and on the vectors that they must tell from noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chi
from torch import Tensor

from constrained_diffusion.noise_optimization.concentration import (
    chi_norm,
    log_bound_covariance,
    log_bound_mean,
    log_bounds,
    log_probability,
    prno,
    spectral_norm,
)
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer
from constrained_diffusion.noise_optimization.orders import draw_orders

LATENTS = 835_584  # 51 latents of 4 x 64 x 64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def probability(z: Tensor, k: int = 2, permutations: int = 5) -> list[float]:
    orders = draw_orders(z.shape[1], k, permutations, (7,))
    return log_probability(log_bounds(z, orders, k)).exp().tolist()


# -------------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    ("mean", "m", "expected"),
    [
        ([0.3, 0.4], 100, math.log(2) - 6.25),  # 2 exp(-100 * 0.25 / 4)
        ([0.5], 20, math.log(2) - 2.5),  # 2 exp(-20 * 0.25 / 2)
        ([0.3, 0.4], 10, 0.0),  # 2 exp(-0.625) > 1: min, not max
        ([0.0, 0.0], 100, 0.0),
    ],
)
def test_p1_by_hand(mean: list[float], m: int, expected: float) -> None:
    assert log_bound_mean(torch.tensor(mean, dtype=torch.float64), m).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("second", "m", "expected"),
    [
        ([[4.0, 0.0], [0.0, 1.0]], 200, math.log(2) - 81.0),  # M = 3: 2 - 1 - 0.1 = 0.9, 2 exp(-200 * 0.81 / 2)
        ([[1.0, 3.0], [3.0, 1.0]], 200, math.log(2) - 81.0),  # the same M off the diagonal
        ([[0.25]], 64, math.log(2) - 32 * (1.75**0.5 - 1.125) ** 2),  # M = 0.75: a variance too small
        ([[1.1, 0.0], [0.0, 1.0]], 200, 0.0),  # sqrt(1.1) - 1 < 0.1
        ([[1.0, 0.0], [0.0, 1.0]], 200, 0.0),
    ],
)
def test_p2_by_hand(second: list[list[float]], m: int, expected: float) -> None:
    assert log_bound_covariance(torch.tensor(second, dtype=torch.float64), m).item() == pytest.approx(expected)


def test_the_bounds_see_the_natural_order_first_and_p_is_the_least_of_all() -> None:
    z = torch.tensor([[1.0, -1.0], [2.0, -2.0]]).repeat(1, 400)  # rows (a, -a)
    bounds = log_bounds(z, draw_orders(800, 2, 3, (0,)), 2)
    assert bounds.shape == (2, 4, 2)
    excess = math.sqrt(2) - 1 - math.sqrt(2 / 400)  # second = [[1, -1], [-1, 1]] has M = 1
    assert bounds[0, 0, 1].item() == pytest.approx(math.log(2) - 200 * excess**2, rel=1e-4)
    assert bounds[0, 0, 0].item() == pytest.approx(math.log(2) - 400 * 2 / 4, rel=1e-5)
    assert bounds[0, 1:].max() > bounds[0, 0].max()  # random orders break the pairs up
    assert log_probability(bounds).tolist() == bounds.flatten(1).min(1).values.tolist()


def test_the_regulariser_is_the_mean_over_orders_and_the_natural_order_by_its_weight() -> None:
    bounds = torch.tensor([[[-1.0, -2.0], [-10.0, 0.0], [-4.0, -6.0]], [[0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]])
    assert prno(bounds).tolist() == [-13.0, -0.5]  # (-10 - 10) / 2 - 3
    assert prno(bounds, natural_weight=0.0).tolist() == [-10.0, -0.5]
    assert prno(bounds, natural_weight=0.5).tolist() == [-11.5, -0.5]


def test_without_permutations_the_natural_order_is_left() -> None:
    z = draw(2, 60) + 1
    bounds = log_bounds(z, draw_orders(60, 2, 0, (0,)), 2)
    assert bounds.shape == (2, 1, 2)
    assert prno(bounds).tolist() == bounds.sum((1, 2)).tolist()


def test_k_must_divide_n() -> None:
    with pytest.raises(ValueError, match="k must divide .* 9, but got k=2"):
        log_bounds(draw(1, 9), draw_orders(10, 2, 1, (0,)), 2)


# -------------------------------------------------------------------------------------------------------- spectral norm


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_the_spectral_norm_is_torchs(k: int) -> None:
    a = draw(50, k, k, dtype=torch.float64)
    symmetric = a + a.transpose(1, 2)
    norm = spectral_norm(symmetric)
    torch.testing.assert_close(norm, torch.linalg.matrix_norm(symmetric, ord=2), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda b: spectral_norm(b + b.transpose(1, 2)), a[:5].requires_grad_())


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("scale", [0.0, 1.0, -2.0])
def test_its_gradient_is_finite_where_all_eigenvalues_are_the_same(k: int, scale: float) -> None:
    matrix = (scale * torch.eye(k)).requires_grad_()
    norm = spectral_norm(matrix)
    assert norm.item() == pytest.approx(abs(scale), abs=1e-12)
    assert torch.autograd.grad(norm, matrix)[0].isfinite().all()


# ------------------------------------------------------------------------------------- what P tells apart, from which n


@pytest.mark.parametrize("change", [torch.zeros_like, lambda z: 1.02 * z, lambda z: z + 0.01])
def test_p_refuses_what_is_not_noise(change: Callable[[Tensor], Tensor]) -> None:
    assert probability(change(draw(1, LATENTS)))[0] < 1e-3


def test_p_accepts_noise() -> None:
    for seed in range(3):
        assert 0.01 < probability(draw(1, LATENTS, seed=seed))[0] <= 1


def test_p_accepts_noise_in_as_many_orders_as_are_drawn_by_default() -> None:
    default = NoiseOptimizer(lambda z: z, lambda x: x.mean(1))
    assert (default.k, default.permutations) == (2, 100)
    for seed in range(3):
        assert 0.01 < probability(draw(1, LATENTS, seed=seed), default.k, default.permutations)[0] <= 1


def test_only_the_natural_order_sees_that_neighbours_move_together() -> None:
    z = draw(1, 10_000).repeat_interleave(2, 1)
    natural, *permuted = log_bounds(z, draw_orders(20_000, 2, 10, (0,)), 2)[0].sum(1).tolist()
    assert natural < -100
    assert min(permuted) > -10


def least_n(below: Callable[[int], float]) -> int:
    """The least even n at which the log bound `below(m)` is under log 0.001."""
    return 2 * next(m for m in range(1, 10**6) if below(m) < math.log(1e-3))


def test_the_least_n_of_the_module_docstring() -> None:
    def covariance(second: float) -> Callable[[int], float]:
        norm = abs(second - 1)
        return lambda m: math.log(2) - m / 2 * max(math.sqrt(1 + norm) - 1 - math.sqrt(2 / m), 0) ** 2

    assert least_n(covariance(0.0)) == 330  # zeros
    assert least_n(covariance(1.02**2)) == pytest.approx(141_000, rel=5e-3)  # E z^2 = 1.02^2
    assert least_n(lambda m: math.log(2) - m * 2 * 0.01**2 / 4) == pytest.approx(304_000, rel=5e-3)  # E z = 0.01
    assert probability(torch.zeros(1, 330))[0] < 1e-3 < probability(torch.zeros(1, 328))[0]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_bounds_hold_for_gaussian_vectors(k: int) -> None:
    """How often p1 or p2 falls below a level is at most that level: `concentration` in the word's sense."""
    trials, m = 20_000, 24
    bounds = log_bounds(draw(trials, m * k, seed=k), draw_orders(m * k, k, 0, (0,)), k)[:, 0].exp()
    for level in (0.05, 0.2, 0.5, 0.9):
        often = (bounds < level).double().mean(0)
        assert (often <= level).all(), (level, often)
    assert (bounds[:, 0] < 0.9).any()  # they do fall at times, and the test could have failed


# ------------------------------------------------------------------------------------------------------- norm of a chi


def test_chi_norm_is_scipys_density_of_the_norm_up_to_a_constant() -> None:
    z = draw(5, 12, dtype=torch.float64) * torch.linspace(0.3, 3, 5, dtype=torch.float64)[:, None]
    difference = chi_norm(z) - torch.from_numpy(chi.logpdf(z.norm(dim=1).numpy(), 12))
    torch.testing.assert_close(difference, difference[:1].expand(5), rtol=1e-10, atol=1e-10)


def test_chi_norm_is_largest_at_the_root_of_n_minus_1() -> None:
    n = 50
    direction = torch.nn.functional.normalize(draw(1, n, dtype=torch.float64))
    top = (math.sqrt(n - 1) * direction).requires_grad_()
    value = chi_norm(top)
    assert torch.autograd.grad(value.sum(), top)[0].abs().max() < 1e-12
    for factor in (0.5, 0.999, 1.001, 2.0):
        assert chi_norm(factor * top) < value


def test_gradcheck() -> None:
    z = 3 * draw(2, 24, dtype=torch.float64) + 2
    orders = draw_orders(24, 2, 2, (0,))
    assert (log_bounds(z, orders, 2) < 0).any(1).all()  # both bounds are at work
    assert torch.autograd.gradcheck(chi_norm, z.requires_grad_())
    assert torch.autograd.gradcheck(lambda noise: prno(log_bounds(noise, orders, 2)), z)


def test_gradients_are_finite_at_zero() -> None:
    z = torch.zeros(1, 400, requires_grad=True)
    value = prno(log_bounds(z, draw_orders(400, 2, 2, (0,)), 2)) + chi_norm(z)
    assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()
