"""How often each constraint is broken: against counts by hand and scipy's bounds."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.stats import beta
from torch import Tensor, nn

from constrained_diffusion.constraint_rates import ConstraintRates, unique_names
from constrained_diffusion.objectives import Constraint


class Above(Constraint):
    """g = one of the numbers of a sample - limit."""

    def __init__(self, column: int, limit: float = 0.0, tolerance: float = 0.0) -> None:
        super().__init__(tolerance)
        self.column, self.limit = column, limit

    def forward(self, clean: Tensor) -> Tensor:
        return clean[:, self.column] - self.limit


class OfSteps(Above):
    needs_step_record = True


SAMPLES = torch.full((10, 2), -1.0)
SAMPLES[:6, 0] = 1.0  # six break the first rule,
SAMPLES[5:7, 1] = 1.0  # two the second, one of them both


def test_each_constraint_has_its_own_rate_and_any_of_them_one_more() -> None:
    rates = ConstraintRates([Above(0), Above(1)])
    rates.update(SAMPLES[:3])
    rates.update(SAMPLES[3:])
    found = rates.compute()
    assert {name: one["violation_rate"] for name, one in found["constraints"].items()} == {
        "Above_0": 0.6,
        "Above_1": 0.2,
    }
    assert (found["own_violation_rate"], found["n"]) == (0.7, 10)
    bounds = [one["violation_upper_95"] for one in found["constraints"].values()]
    assert [*bounds, found["own_violation_upper_95"]] == pytest.approx(
        [beta.ppf(0.95, k + 1, 10 - k) for k in (6, 2, 7)], abs=1e-9
    )
    assert all(one["n"] == 10 for one in found["constraints"].values())


def test_tolerance_and_margin_are_the_constraint_s_own_and_no_number_is_no_obedience() -> None:
    wide = Above(0, tolerance=0.5)
    wide.margin = 0.5  # g = 1 is just allowed
    rates = ConstraintRates([wide])
    rates.update(torch.tensor([[1.0], [1.01], [float("nan")], [0.2]]))
    assert rates.compute()["own_violation_rate"] == 0.5


def test_those_that_do_not_judge_samples_are_left_out_and_the_others_keep_their_names() -> None:
    helping = Above(1)
    helping.has_verdict = False
    rates = ConstraintRates([helping, OfSteps(1), Above(0)])
    rates.update(SAMPLES)
    found = rates.compute()
    assert list(found["constraints"]) == ["Above_2"]
    assert found["own_violation_rate"] == 0.6


def test_without_constraints_samples_are_counted() -> None:
    rates = ConstraintRates([])
    rates.update(SAMPLES)
    assert (rates.compute()["n"], rates.compute()["constraints"]) == (10, {})


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_reset_and_nothing_judged() -> None:
    rates = ConstraintRates([Above(0)])
    rates.update(SAMPLES)
    rates.reset()
    with pytest.raises(ValueError, match="at least one sample, got none; call update"):
        rates.compute()


def test_constraints_are_no_modules_of_the_rates() -> None:
    constraint = Above(0)
    constraint.weight = nn.Parameter(torch.ones(1))
    rates = ConstraintRates([constraint])
    assert not list(rates.parameters())
    assert not rates.state_dict()
    assert copy.deepcopy(rates).names == ["Above"]


def test_names() -> None:
    assert unique_names([Above(0), OfSteps(0)]) == ["Above", "OfSteps"]
    assert unique_names([Above(0), OfSteps(0), Above(1)]) == ["Above_0", "OfSteps", "Above_2"]
