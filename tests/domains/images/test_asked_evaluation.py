"""What a judge sees where a model was asked for a class, with a judge whose every answer is known."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from constrained_diffusion.domains.images.asked_evaluation import AskedClassEvaluation
from constrained_diffusion.domains.images.class_probability import ClassProbability


class Painted(nn.Module):
    """The class is the first pixel times ten, and how sure to be of it the second pixel."""

    num_classes = 4

    def forward(self, images: Tensor) -> Tensor:
        shown = nn.functional.one_hot((images[:, 0, 0, 0] * 10).round().long(), 4)
        sure = images[:, 0, 0, 1, None]
        return (shown * sure + (1 - shown) * (1 - sure) / 3).log()


def images(seen: list[int], sure: list[float]) -> Tensor:
    result = torch.zeros(len(seen), 1, 2, 2)
    result[:, 0, 0, 0], result[:, 0, 0, 1] = torch.tensor(seen) / 10, torch.tensor(sure)
    return result


def evaluated(label: int | None, asked: list[int], seen: list[int], sure: list[float]) -> dict[str, Any]:
    evaluation = AskedClassEvaluation(Painted(), label=label)
    evaluation.update_asked(images(seen, sure), {"class_labels": torch.tensor(asked)})
    return evaluation.compute()["metrics"]  # type: ignore[no-any-return]


def test_the_label_and_the_others_are_counted_apart() -> None:
    found = evaluated(2, [2, 2, 2, 0, 1, 3], [2, 1, 1, 0, 1, 2], [0.9, 0.4, 0.9, 0.9, 0.9, 0.9])
    assert found["asked_label_rate"] == pytest.approx(1 / 3)
    assert found["asked_confident_rate"] == pytest.approx(2 / 3)
    assert found["asked_histogram"] == [0, 2, 1, 0]
    assert found["agreement"] == pytest.approx(2 / 3)
    interval = stats.binomtest(1, 3).proportion_ci(0.95, "exact")
    assert found["asked_label_rate_95"] == pytest.approx([interval.low, interval.high], abs=1e-6)


def test_without_a_label_all_classes_agree_or_not() -> None:
    found = evaluated(None, [0, 1, 2, 3], [0, 1, 2, 2], [0.9] * 4)
    assert found["agreement"] == 0.75
    assert "asked_label_rate" not in found


def test_rows_that_were_asked_for_nothing_count_among_all_alone() -> None:
    evaluation = AskedClassEvaluation(Painted(), label=2)
    evaluation.update_asked(images([2, 2], [0.9, 0.9]), {"class_labels": torch.tensor([4, 2])})
    found = evaluation.compute()
    assert found["violation_rate"] == 1.0
    assert found["n"] == 2
    assert found["metrics"]["asked_histogram"] == [0, 0, 1, 0]
    assert found["metrics"]["agreement"] is None


def test_the_label_is_the_constraint_s_and_figures_are_declared() -> None:
    evaluation = AskedClassEvaluation(Painted())
    evaluation.bind([ClassProbability(Painted(), label=1, threshold=0.1)])
    found = evaluation
    found.update_asked(images([1], [0.9]), {"class_labels": torch.tensor([1])})
    metrics = found.compute()["metrics"]
    assert metrics["asked_label_rate"] == 1.0
    assert {figure.key for figure in evaluation.figures} <= metrics.keys() | {"total_variation"}


def test_samples_without_a_class_are_refused() -> None:
    with pytest.raises(ValueError, match="asked for a class, by the condition 'class_labels', but got text"):
        AskedClassEvaluation(Painted()).update_asked(images([1], [0.9]), {"text": torch.zeros(1)})
