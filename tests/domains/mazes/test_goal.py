from __future__ import annotations

import pytest
import torch

from constrained_diffusion.domains.mazes.goal import NearGoal


def test_the_reward_is_minus_the_distance_of_the_last_point() -> None:
    plans = torch.zeros(2, 5, 3, 4)
    plans[1, -1, -1, :2] = torch.tensor([1.5 + 3.0, -0.5 + 4.0])
    reward = NearGoal([1.5, -0.5], "open")(plans)
    assert reward.tolist() == pytest.approx([-((1.5**2 + 0.5**2) ** 0.5), -5.0])


def test_at_the_goal_its_gradient_is_finite() -> None:
    plans = torch.zeros(1, 5, 3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(NearGoal([0.0, 0.0], "open")(plans).sum(), plans)
    assert gradient.isfinite().all()


def test_a_goal_in_a_wall_is_refused() -> None:
    with pytest.raises(ValueError, match="the goal .* lies in a wall"):
        NearGoal([0.0, 0.0], "umaze")
