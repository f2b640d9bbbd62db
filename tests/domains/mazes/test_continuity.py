"""Continuity: circles, whose steps, accelerations and turns are known, and paths with a jump."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.continuity import Continuity, accelerations, steps, turns
from constrained_diffusion.domains.mazes.plans import as_plans


def circle(count: int, radius: float) -> Tensor:
    angle = torch.arange(count, dtype=torch.float64) / count * 2 * math.pi
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)[None]


@pytest.mark.parametrize("count", [5, 40, 400])
def test_a_circle(count: int) -> None:
    """Chords of 2 R sin(pi / n), turns of 2 pi / n, second differences of chord * 2 sin(pi / n)."""
    path, half = circle(count, 2.0), math.pi / count
    chord = 4 * math.sin(half)
    torch.testing.assert_close(steps(path), torch.full((1, count - 1), chord).double())
    torch.testing.assert_close(accelerations(path), torch.full((1, count - 2), chord * 2 * math.sin(half)).double())
    torch.testing.assert_close(turns(path, 1e-6), torch.full((1, count - 2), 1 - math.cos(2 * half)).double())


def test_values_are_shares_of_their_limits_beyond_them() -> None:
    clean = circle(8, 1.0).reshape(1, 1, 8, 2)
    step, turn = 2 * math.sin(math.pi / 8), 1 - math.cos(math.pi / 4)
    constraint = Continuity(max_step=step / 2, max_acceleration=step, max_turn=2 * turn)
    expected = [1.0] * 7 + [2 * math.sin(math.pi / 8) - 1] * 6 + [-0.5] * 6
    torch.testing.assert_close(constraint(clean), torch.tensor([expected]).double())
    worst = Continuity(max_step=step / 2, max_acceleration=step, max_turn=2 * turn, reduction="worst")
    torch.testing.assert_close(worst(clean), torch.tensor([1.0]).double())


@pytest.mark.parametrize("limit", ["max_step", "max_acceleration", "max_turn"])
def test_a_path_of_dots_breaks_each_limit_that_a_smooth_one_keeps(limit: str) -> None:
    smooth = circle(40, 1.0)
    dotted = smooth.clone()
    dotted[:, 20] += torch.tensor([0.0, 0.6])
    constraint = Continuity(**{limit: {"max_step": 0.2, "max_acceleration": 0.05, "max_turn": 0.1}[limit]})
    assert bool((constraint(as_plans(smooth, 10)) < 0).all())
    assert bool((constraint(as_plans(dotted, 10)) > 0).any())


def test_leaving_a_standing_token_at_speed_is_no_acceleration() -> None:
    line = torch.stack([torch.arange(12).double() * 0.05, torch.zeros(12)], dim=1)[None]
    clean = as_plans(line, 4)
    values = Continuity(max_acceleration=0.01, max_turn=0.1)(clean)
    assert values.shape == (1, 2 * 10)  # of the 12 frames between the standing tokens
    torch.testing.assert_close(values, torch.full_like(values, -1.0))
    assert Continuity(max_step=0.04)(clean).shape == (1, 19)


@pytest.mark.parametrize("limit", ["max_step", "max_acceleration", "max_turn"])
@pytest.mark.parametrize("reduction", ["each", "worst"])
def test_gradients(limit: str, reduction: str) -> None:
    clean = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(Continuity(**{limit: 0.3}, reduction=reduction), (clean,))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stands_are_finite_and_have_no_direction(dtype: torch.dtype) -> None:
    places = [[0.0, 0.0]] * 3 + [[0.5, 0.0]] * 2 + [[0.5, 1e-4], [0.5, 0.0], [0.5, 0.5]]
    clean = torch.tensor(places, dtype=dtype).reshape(1, 1, 8, 2).requires_grad_()
    values = Continuity(0.1, 0.1, 0.1)(clean)
    values.relu().square().sum().backward()
    assert bool(values.isfinite().all())
    assert clean.grad is not None
    assert bool(clean.grad.isfinite().all())
    torch.testing.assert_close(values[:, -6:], torch.full_like(values[:, -6:], -1.0))
    assert Continuity(max_turn=0.1, shortest=1e-5)(clean).detach().max() > 0  # back and forth, if 1e-4 has a direction


def test_it_needs_a_limit() -> None:
    with pytest.raises(ValueError, match="at least one of max_step, max_acceleration, max_turn"):
        Continuity()


@pytest.mark.parametrize("name", ["max_step", "max_acceleration", "max_turn", "shortest"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_limits_are_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"a positive {name}, got"):
        Continuity(**{"max_step": 0.1, name: value})


def test_a_turn_has_an_end() -> None:
    with pytest.raises(ValueError, match=r"max_turn = 1 - cos in \(0, 2\], got 2.5"):
        Continuity(max_turn=2.5)


def test_plans_that_are_too_short() -> None:
    Continuity(max_acceleration=0.1).check_data((3, 3, 2))
    with pytest.raises(ValueError, match="Continuity expects plans with more frames than .3, 2."):
        Continuity(max_acceleration=0.1).check_data((3, 2, 2))
    with pytest.raises(ValueError, match="Continuity expects plans of shape"):
        Continuity(max_step=0.1).check_data((1, 28, 28))
