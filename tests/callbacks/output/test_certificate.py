"""The certificate's numbers against scipy's quantiles, and its sentence."""

from __future__ import annotations

import json

import pytest
import torch
from scipy import stats
from torch import Tensor

from constrained_diffusion.callbacks.output.certificate import certify, check_rows, sentence
from constrained_diffusion.diffusion.rejection import InfeasibleError
from constrained_diffusion.objectives import Constraint, StepRecord


class Rule(Constraint):
    def forward(self, clean: Tensor) -> Tensor:
        return clean[:, 0]


class OfSteps(Constraint):
    needs_step_record = True

    def forward(self, record: StepRecord) -> Tensor:  # type: ignore[override]
        return record.noise[:, 0]


def rows(count: int, extra: int) -> list[tuple[int, int, bool]]:
    """`count` seeds, the first of which took `extra` draws more than one."""
    return [(seed, 1 + (extra if seed == 0 else 0), True) for seed in range(count)]


@pytest.mark.parametrize(("n", "extra", "violations"), [(64, 2, 0), (200, 37, 3), (5, 0, 5), (1, 6, 1)])
def test_bounds_are_beta_quantiles(n: int, extra: int, violations: int) -> None:
    measured = {"by": "Judge", "violation_rate": violations / n, "n": n, "violation_upper_95": None, "metrics": {}}
    certificate = certify(rows(n, extra), {"Rule": Rule(0.25)}, measured)
    assert (certificate["n"], certificate["draws"]) == (n, n + extra)
    assert certificate["acceptance_rate"] == n / (n + extra)
    low, high = certificate["acceptance_interval_95"]
    assert low == pytest.approx(stats.beta(n, extra + 1).ppf(0.025))
    assert high == pytest.approx(stats.beta(n, extra).ppf(0.975) if extra else 1.0)
    judge = certificate["judge"]
    upper = stats.beta(violations + 1, n - violations).ppf(0.95) if violations < n else 1.0
    assert (judge["violations"], judge["violation_upper_95"]) == (violations, pytest.approx(upper))
    assert certificate["constraints"] == [{"name": "Rule", "tolerance": 0.25}]
    assert json.loads(json.dumps(certificate)) == certificate


def test_the_sentence() -> None:
    measured = {"by": "Judge", "violation_rate": 0.0, "n": 64, "metrics": {}}
    certificate = certify(rows(64, 2), {"Rule": Rule()}, measured)
    assert certificate["sentence"] == (
        "64 of 64 samples satisfy Rule (g <= 0) by their own g; accepted 64 of 66 drawn (97.0 %, 95 % interval 89.5 % "
        "to 99.6 %); the independent judge finds 0 of 64 (upper 95 % bound 4.6 %)."
    )


@pytest.mark.parametrize("measured", [None, {"by": "Judge", "violation_rate": None, "n": 3, "metrics": {}}])
def test_without_a_judge_the_certificate_says_so(measured: dict[str, object] | None) -> None:
    helping = Rule()
    helping.has_verdict = False
    given = {"Rule": Rule(), "OfSteps": OfSteps(), "Other": Rule(0.5), "Helping": helping}
    certificate = certify(rows(3, 0), given, measured)
    assert certificate["judge"] is None
    assert certificate["not_judging_samples"] == ["OfSteps", "Helping"]
    assert "3 of 3 samples satisfy Rule (g <= 0) and Other (g <= 0.5) by their own g" in certificate["sentence"]
    assert "; OfSteps, Helping judges no samples and has no say;" in certificate["sentence"]
    assert certificate["sentence"].endswith("; no independent judge has looked at them.")


def test_several_tolerances_are_told() -> None:
    rule = Rule()
    rule.tolerance = torch.tensor([0.0, 0.5])  # type: ignore[assignment]
    certificate = certify(rows(2, 0), {"Rule": rule}, None)
    assert certificate["constraints"] == [{"name": "Rule", "tolerance": [0.0, 0.5]}]
    assert "Rule (g <= [0.0, 0.5])" in sentence(certificate)


def test_what_cannot_be_certified() -> None:
    check_rows(rows(3, 4), 5)
    failed = [(seed, 9, seed == 1) for seed in range(7)]
    with pytest.raises(InfeasibleError, match=r"max_draws=9 draws of seed 0, 2, 3 and 3 more \(1 feasible among 63"):
        check_rows(failed, 9)
    with pytest.raises(ValueError, match="got 3 different seeds among 4"):
        check_rows([*rows(3, 0), (2, 1, True)], 9)
