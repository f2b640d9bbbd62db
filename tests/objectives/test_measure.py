"""What objectives return is checked in every call, by the name of their class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.objectives import (
    Constraint,
    Feasibility,
    Reward,
    RewardAtLeast,
    StepRecord,
    WeightedSum,
    measure_constraint,
    measure_reward,
)


class Mine(Constraint):
    """Returns what it was told to."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, clean: Tensor) -> Tensor:
        found: Tensor = self.returned(clean)
        return found


class MyReward(Reward):
    """Returns what it was told to."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, clean: Tensor) -> Tensor:
        found: Tensor = self.returned(clean)
        return found


NO_FLOATS = [
    (lambda x: None, r"returned nothing \(None\); end its forward with a return"),
    (lambda x: 0.5, "returned a float; compute it with torch"),
    (lambda x: x.mean(1).numpy(), "returned a ndarray; compute it with torch"),
    (lambda x: list(x.mean(1)), "returned a list"),
    (lambda x: x.mean(1) > 0, "returned bool; return a distance"),
    (lambda x: x.argmax(1), "returned int64"),
]
MISSHAPEN = [
    lambda x: x.mean(),
    lambda x: x.mean(1)[:-1],
    lambda x: x.sum(0),
    lambda x: x[None],
    lambda x: x[..., None],
    lambda x: x[:, :0],
]


@pytest.mark.parametrize(("returned", "told"), NO_FLOATS)
def test_what_is_no_tensor_of_floats_is_refused(returned: Any, told: str) -> None:
    samples = torch.rand(4, 2)
    with pytest.raises(TypeError, match=f"^Mine must return a tensor of floats.* {told}"):
        measure_constraint(Mine(returned), samples)
    with pytest.raises(TypeError, match=f"^MyReward must return a tensor of floats.* {told}"):
        measure_reward(MyReward(returned), samples)


@pytest.mark.parametrize("returned", MISSHAPEN)
def test_another_shape_is_refused(returned: Any) -> None:
    samples = torch.rand(4, 2)
    shape = tuple(returned(samples).shape)
    with pytest.raises(ValueError, match=r"^Mine must return g of shape \(B,\), .* with B = 4") as told:
        measure_constraint(Mine(returned), samples)
    assert str(shape) in str(told.value)
    with pytest.raises(ValueError, match=r"^MyReward must return one number per sample, shape \(B,\) with B = 4"):
        measure_reward(MyReward(returned), samples)


def test_both_shapes_of_g_come_as_columns() -> None:
    samples = torch.rand(4, 2)
    assert torch.equal(measure_constraint(Mine(lambda x: x[:, 1]), samples), samples[:, 1:])
    assert torch.equal(measure_constraint(Mine(lambda x: x), samples), samples)
    assert measure_constraint(Mine(lambda x: x.bfloat16()), samples).dtype == torch.bfloat16
    assert measure_constraint(Mine(lambda x: x[:, 0]), samples[:0]).shape == (0, 1)
    assert torch.equal(measure_reward(MyReward(lambda x: x[:, 1]), samples), samples[:, 1])


def test_rows_of_rules_are_not_dealt_out_to_samples() -> None:
    """Of two rules in shape (2, B), the second broken by every sample, half of the samples once passed for feasible."""
    rules = Mine(lambda x: torch.stack([x[:, 0] - 1, x[:, 1]]))
    with pytest.raises(ValueError, match=r"Mine must return g of shape .* but returned \(2, 4\); keep rows first"):
        rules.holds(torch.full((4, 2), 0.5))
    with pytest.raises(ValueError, match="Mine"):
        Feasibility(rules)(torch.full((4, 2), 0.5))


def test_a_constraint_on_steps_is_checked_too() -> None:
    step = StepRecord(*[torch.rand(4, 2) for _ in range(2)], torch.arange(4), *[torch.rand(4, 2) for _ in range(2)])
    on_steps = Mine(lambda record: record.noise.mean())
    on_steps.needs_step_record = True
    with pytest.raises(ValueError, match=r"Mine .* with B = 4, but returned \(\)"):
        measure_constraint(on_steps, step)
    on_steps.returned = lambda record: record.noise.mean(1)
    assert measure_constraint(on_steps, step).shape == (4, 1)


def test_a_part_of_another_objective_goes_by_its_own_name() -> None:
    scalar = MyReward(lambda x: x.mean())
    for whole in (RewardAtLeast(scalar, 0.0), WeightedSum([scalar], [1.0])):
        with pytest.raises(ValueError, match="^MyReward must return one number per sample"):
            whole(torch.rand(4, 2))
