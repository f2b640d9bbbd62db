"""The penalty against closed forms, and the two facts about the balance ratio's gradient."""

from __future__ import annotations

import pytest
import torch

from constrained_diffusion.fine_tuning import penalty


def test_violation_and_penalty_in_closed_form() -> None:
    g = torch.tensor([-2.0, 0.0, 0.5, 3.0])
    assert penalty.violation(g).tolist() == [0.0, 0.0, 0.5, 3.0]
    assert penalty.quadratic_penalty(g).tolist() == [0.0, 0.0, 0.25, 9.0]
    assert penalty.quadratic_penalty(g, 0.25).tolist() == [0.0, 0.0, 0.0625, 7.5625]


def test_each_constraint_has_its_own_tolerance() -> None:
    g = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    assert penalty.quadratic_penalty(g, torch.tensor([0.0, 1.5])).tolist() == [[1.0, 0.0], [0.0, 0.25]]


def test_the_penalty_is_smooth_at_feasibility() -> None:
    g = torch.tensor([-0.5, 0.3, 1.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(penalty.quadratic_penalty, g)
    (gradient,) = torch.autograd.grad(penalty.quadratic_penalty(g).sum(), g)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.6, 2.4], dtype=torch.float64))


def step(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A noise error E and a penalty P that both depend on the weight."""
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    error = (weight[0] * x - 0.3).square().mean()
    return error, penalty.quadratic_penalty(weight[1] * x + weight[0]).mean()[None]


def test_an_attached_ratio_cancels_the_penalty_and_a_detached_one_does_not() -> None:
    weight = torch.tensor([0.7, 0.4], dtype=torch.float64, requires_grad=True)
    error, p = step(weight)
    (of_error,) = torch.autograd.grad(error, weight, retain_graph=True)
    (of_penalty,) = torch.autograd.grad(p.sum(), weight, retain_graph=True)
    assert of_penalty.abs().min() > 0.1

    attached = error / p.clamp(min=penalty.FLOOR)
    (gradient,) = torch.autograd.grad((attached * p).sum(), weight, retain_graph=True)
    torch.testing.assert_close(gradient, of_error, rtol=1e-12, atol=1e-12)  # E alone: nothing is learnt

    rho = penalty.balance(error, p)
    assert not rho.requires_grad
    torch.testing.assert_close(rho, attached.detach())
    (gradient,) = torch.autograd.grad((rho * p).sum(), weight)
    torch.testing.assert_close(gradient, attached.item() * of_penalty)


def test_the_balanced_penalty_is_as_large_as_the_error() -> None:
    error, p = torch.tensor(0.3), torch.tensor([0.02, 5.0])
    torch.testing.assert_close(penalty.balance(error, p) * p, torch.tensor([0.3, 0.3]))


def test_floor_and_cap_of_the_ratio() -> None:
    assert penalty.balance(torch.tensor(0.001), torch.tensor([0.0])).item() == pytest.approx(0.001 / 1e-6)
    assert penalty.balance(torch.tensor(0.5), torch.tensor([0.0, 1e-9])).tolist() == [1e4, 1e4]
    assert penalty.balance(torch.tensor(0.0), torch.tensor([0.0])).tolist() == [0.0]


def test_the_penalty_acts_above_tau_only() -> None:
    p = torch.tensor([0.009, 0.01, 0.011], requires_grad=True)
    acting = penalty.penalty_active(p, torch.tensor(0.01))
    assert acting.tolist() == [0.0, 0.0, 1.0]
    assert not acting.requires_grad


def test_the_growth_of_table_1() -> None:
    # c = 0.05, r = 1.2, n = 10, I = 50: five growths, then constant
    grown = [
        penalty.geometric_growth(0.05, 1.2, step, every_n_steps=10, max_iterations=50)
        for step in (0, 9, 10, 19, 20, 30, 40, 49, 50, 51, 500)
    ]
    expected = [0.05, 0.05, 0.06, 0.06, 0.072, 0.0864, 0.10368, 0.10368, 0.124416, 0.124416, 0.124416]
    assert grown == pytest.approx(expected, rel=1e-12)
    assert max(grown) == pytest.approx(0.05 * 1.2**5)


def test_growth_by_one_is_none() -> None:
    assert penalty.geometric_growth(0.3, 1.0, 1000, every_n_steps=1, max_iterations=1000) == 0.3
