"""What a subclass of `Evaluation` must write, and what it gets for nothing."""

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.evaluation import Evaluation, Figure, OwnViolations, images
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.statistics import ViolationRate


class NegativeSum(Evaluation):
    """A sample violates where its sum is negative: the four methods are enough."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = ViolationRate()

    def update(self, clean: Tensor) -> None:
        self.rate.update(clean.flatten(1).sum(1) < 0)

    def compute(self) -> dict[str, Any]:
        return {**self.rate.compute(), "metrics": {}}

    def reset(self) -> None:
        self.rate.reset()

    def marks(self, clean: Tensor) -> list[str]:
        return ["violation" if row.sum() < 0 else "" for row in clean]


def test_four_methods_make_an_evaluation() -> None:
    evaluation = NegativeSum()
    evaluation.bind([])
    clean = torch.tensor([[1.0, 1.0], [1.0, -2.0]])
    evaluation.update(clean)
    result = evaluation.compute()
    assert (result["violation_rate"], result["n"]) == (0.5, 2)
    assert evaluation.marks(clean) == ["", "violation"]
    before: dict[str, Any] = {"metrics": {}}
    evaluation.compare(before, result)
    assert before == {"metrics": {}}
    assert result["metrics"] == {}


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 8), (4, 9, 30)])
def test_images_show_themselves(shape: tuple[int, ...]) -> None:
    clean = torch.rand(2, *shape)
    assert NegativeSum().pictures(clean) is clean
    assert images(clean) is clean
    assert NegativeSum().overlays(clean) == {}


@pytest.mark.parametrize("shape", [(7,), (60, 4), (2, 9, 9), (3, 10, 6), (4, 30, 4), (1, 10, 2), (1, 3, 9, 9)])
def test_plans_and_other_samples_are_no_images(shape: tuple[int, ...]) -> None:
    assert NegativeSum().pictures(torch.rand(2, *shape)) is None


def test_the_base_cannot_be_used_itself() -> None:
    with pytest.raises(TypeError, match="abstract methods"):
        Evaluation()  # type: ignore[abstract]


def test_what_is_declared_by_default_is_nothing() -> None:
    assert NegativeSum().declared() == {"figures": [], "subject": "violations", "overlays_legend": ""}


def test_figures_come_back_from_json() -> None:
    figure = Figure("shares", "class shares", "histogram", "less", headline=True, marked=4)
    assert Figure.from_json(json.loads(json.dumps(asdict(figure)))) == figure
    assert Figure.from_json({"key": "a", "label": "b"}) == Figure("a", "b")


@pytest.mark.parametrize(
    "entry",
    [
        *[None, 3, [], {}, {"key": "a"}, {"key": 1, "label": "b"}, {"key": "a", "label": ["b"]}],
        *[{"key": "a", "label": "b", "other": 1}, {"key": "a", "label": "b", "kind": "x"}],
        *[{"key": "a", "label": "b", "kind": []}, {"key": "a", "label": "b", "marked": "4"}],
    ],
)
def test_what_is_no_figure_is_none(entry: Any) -> None:
    assert Figure.from_json(entry) is None


def test_a_figure_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="expects a kind of rate, number, .*; got 'share' and 'high'"):
        Figure("a", "b", "share", "high")  # type: ignore[arg-type]


class Positive(Constraint):
    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).sum(1)


def test_own_violations_mark_what_breaks_a_constraint_and_find_nothing_else() -> None:
    helping, counting = Positive(tolerance=-5.0), Positive(tolerance=0.5)
    helping.has_verdict = False
    evaluation = OwnViolations()
    evaluation.bind([helping, counting])
    clean = torch.tensor([[0.2, 0.2], [0.5, 0.1], [float("nan"), 0.0]])
    evaluation.update(clean)
    evaluation.update(clean[:1])
    assert evaluation.marks(clean) == ["", "violation", "violation"]
    result = evaluation.compute()
    assert result == {"violation_rate": None, "violation_upper_95": None, "n": 4, "metrics": {}}
    evaluation.reset()
    evaluation.update(clean[:2])
    assert evaluation.compute()["n"] == 2
