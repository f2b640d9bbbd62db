"""What a subclass of `Evaluation` must write, and what it gets for nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.evaluation import Evaluation, images
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
