"""What `Steering` says of rows and samples, and which constraints it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.objectives import Constraint, StepRecord


class TwoRules(Constraint):
    """g = (mean pixel, -1): the first rule may be broken, the second never is."""

    def forward(self, clean: Tensor) -> Tensor:
        mean = clean.flatten(1).mean(1)
        return torch.stack([mean, torch.full_like(mean, -1.0)], 1)


def test_a_row_violates_by_its_worst_rule() -> None:
    steering, clean = Steering([TwoRules(tolerance=0.25)]), torch.tensor([0.0, 0.5, 1.0])[:, None, None, None]
    record = StepRecord(clean.expand(3, 1, 8, 8), *[torch.empty(3)] * 4)
    found = steering.measure(steering.constraints[0], record)
    assert found.excess.tolist() == [-0.25, 0.25, 0.75]
    assert found.violating.tolist() == [False, True, True]
    assert found.squared.tolist() == [0.0, 0.0625, 0.5625]


class OfSteps(Constraint):
    """g = the predicted noise, of which a sample has none."""

    needs_step_record = True

    def forward(self, record: StepRecord) -> Tensor:  # type: ignore[override]
        return record.predicted_noise.flatten(1).mean(1)


def test_the_verdict_on_samples_does_not_ask_constraints_on_steps(too_bright: Any) -> None:
    samples = torch.cat([torch.zeros(2, 1, 8, 8), torch.ones(1, 1, 8, 8)])
    assert Steering([OfSteps(), too_bright()]).feasible(samples).tolist() == [1.0, 1.0, 0.0]


class Counted(TwoRules):
    """Has no gradient, and takes squares only."""

    differentiable = False

    def check_data(self, shape: tuple[int, ...]) -> None:
        if shape[-1] != shape[-2]:
            raise ValueError(f"Counted expects squares, got {shape}.")


def test_what_has_no_gradient_may_judge_but_not_steer_and_says_what_it_takes() -> None:
    steering = Steering([Counted()])
    steering.check("test", (1, 8, 8))
    with pytest.raises(ValueError, match="Counted is not differentiable"):
        steering.check("fit", (1, 8, 8))
    with pytest.raises(ValueError, match="Counted expects squares"):
        steering.check("test", (1, 8, 9))


def test_a_constraint_that_forgot_its_base_is_named_at_once() -> None:
    class Forgetful(TwoRules):
        def __init__(self) -> None:
            nn.Module.__init__(self)

    with pytest.raises(TypeError, match=r"Forgetful lacks .*call super\(\).__init__\(\)"):
        Steering([Forgetful()])
