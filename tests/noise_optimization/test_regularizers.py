"""What each regulariser sees, and which way it pulls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from constrained_diffusion.noise_optimization.concentration import log_bounds
from constrained_diffusion.noise_optimization.orders import draw_orders
from constrained_diffusion.noise_optimization.regularizers import PRNO, ChiNorm, Regularizer, Unregularized

N = 4096
ORDERS = draw_orders(N, 2, 5, (0,))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pull(regularizer: Regularizer, noise: Tensor) -> Tensor:
    """Its gradient with respect to z."""
    z = noise.clone().requires_grad_()
    values = regularizer(z, log_bounds(z, ORDERS, 2))
    assert values.shape == (len(z),)
    return torch.autograd.grad(values.sum(), z)[0]


def test_prno_is_the_mean_over_orders_and_the_natural_order() -> None:
    bounds = torch.tensor([[[-1.0, -2.0], [-10.0, 0.0], [-4.0, -6.0]]])
    assert PRNO()(torch.empty(1, 4), bounds).item() == -13.0
    assert PRNO(natural_weight=0.0)(torch.empty(1, 4), bounds).item() == -10.0


@pytest.mark.parametrize("regularizer", [PRNO(), ChiNorm()])
@pytest.mark.parametrize(("scale", "sign"), [(1.3, -1), (0.7, 1)])
def test_a_norm_out_of_the_typical_set_is_pulled_back(regularizer: Regularizer, scale: float, sign: int) -> None:
    z = scale * draw(2, N)
    assert (sign * (pull(regularizer, z) * z).sum(1) > 0).all()


def test_a_shift_is_pulled_back_by_prno_and_not_seen_by_chi_norm() -> None:
    z = draw(1, N)
    z = (z - z.mean()) / z.std() * (1 - 0.2**2) ** 0.5 + 0.2  # mean 0.2, mean square 1
    assert pull(PRNO(), z).sum() < 0
    assert pull(ChiNorm(), z).abs().max() < 1e-3 * z.abs().max()


def test_prno_leaves_typical_noise_alone() -> None:
    assert not pull(PRNO(), draw(3, N)).flatten(1).any(1).all()


def test_unregularized_is_zero_for_every_row() -> None:
    regularizer = Unregularized()
    assert regularizer.weight == 0
    assert regularizer(draw(3, 4), torch.zeros(3, 2, 2)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("cls", [PRNO, ChiNorm])
def test_a_negative_weight_is_refused(cls: type) -> None:
    with pytest.raises(ValueError, match=r"weight \(gamma\) must be >= 0, got -0.1; 0 switches it off"):
        cls(weight=-0.1)
