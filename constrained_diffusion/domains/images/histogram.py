"""The class histogram of a set of samples, how far it has moved, and how far chance alone would move it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

CONFIDENT = 0.9  #: a probability above this counts as confident


def total_variation(
    counts_a: Tensor | Sequence[float], counts_b: Tensor | Sequence[float], leave_out: int | None = None
) -> float:
    """Return half the L1 distance between two class histograms, in [0, 1]; 0 where the shares agree.

    Args:
        counts_a: counts (or shares) per class, `(C,)`, non-negative.
        counts_b: the same of the other side; the totals may differ.
        leave_out: a class to be dropped from both before they are normalised.

    Raises:
        ValueError: the lengths differ, the class does not exist, or nothing remains of one of them.

    Example:
        >>> total_variation([50, 30, 20], [0, 60, 40], leave_out=0)
        0.0
    """
    if len(counts_a) != len(counts_b):
        raise ValueError(f"total variation expects as many classes in both, got {len(counts_a)} and {len(counts_b)}.")
    return float((_shares(counts_a, leave_out) - _shares(counts_b, leave_out)).abs().sum() / 2)


def total_variation_noise_floor(
    counts: Tensor | Sequence[float], n_a: int, n_b: int, leave_out: int | None = None
) -> float:
    """Return the expected total variation between two independent samples of one and the same distribution.

    A closed form by the normal approximation: the difference of class c's two shares has standard deviation
    sqrt(p_c (1 - p_c) (1 / n_a + 1 / n_b)), the mean magnitude of a normal number is sqrt(2 / pi) of its standard
    deviation, and the distance is half the sum over classes. Samples that share their seeds differ by less.

    Args:
        counts: counts (or shares) per class of that distribution, `(C,)`.
        n_a: how many samples of the one side are counted, those of the class that is left out not among them.
        n_b: the same of the other side.
        leave_out: a class to be dropped before normalising.

    Raises:
        ValueError: a size is below 1, the class does not exist, or nothing remains.

    Example:
        >>> round(total_variation_noise_floor([500] * 10, 4500, 4500, leave_out=4), 4)
        0.0238
    """
    if min(n_a, n_b) < 1:
        raise ValueError(f"the noise floor expects two samples of at least 1 each, got {n_a} and {n_b}.")
    shares = _shares(counts, leave_out)
    deviation = (shares * (1 - shares) * (1 / n_a + 1 / n_b)).sqrt()
    return float(math.sqrt(2 / math.pi) * deviation.sum() / 2)


def _shares(counts: Tensor | Sequence[float], leave_out: int | None) -> Tensor:
    """Return the counts without one class, normalised to 1, float64."""
    kept = torch.as_tensor(counts, dtype=torch.float64, device="cpu").clone()
    if leave_out is not None:
        if not 0 <= leave_out < len(kept):
            raise ValueError(f"leave_out must be one of the classes 0 to {len(kept) - 1}, got {leave_out}.")
        kept[leave_out] = 0
    if kept.sum() <= 0:
        raise ValueError(f"a class histogram expects at least one sample that is not left out, got {list(counts)}.")
    return kept / kept.sum()


class ClassCounts(Metric):
    """Histogram of the predicted classes, and how sure the predictions were; summed over ranks.

    Args:
        num_classes: C.
        confidence: a prediction less probable than this shows none of the classes.
    """

    is_differentiable = False
    full_state_update = False

    counts: Tensor
    non_digits: Tensor
    confident: Tensor

    def __init__(self, num_classes: int, confidence: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.confidence = num_classes, confidence
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("non_digits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("confident", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, probability: Tensor) -> None:
        """Count one batch: `predicted` classes `(B,)` and their `probability` `(B,)` in [0, 1]."""
        self.counts = self.counts + torch.bincount(predicted, minlength=self.num_classes)
        self.non_digits = self.non_digits + (probability < self.confidence).sum()
        self.confident = self.confident + (probability > CONFIDENT).sum()

    def compute(self) -> dict[str, Any]:
        """Return {"class_histogram", "non_digit_rate", "confident_rate"} as Python numbers.

        Raises:
            ValueError: no sample was counted.
        """
        n = int(self.counts.sum())
        if n == 0:
            raise ValueError("an evaluation needs at least one sample, got none; call update before compute.")
        return {
            "class_histogram": self.counts.tolist(),
            "non_digit_rate": int(self.non_digits) / n,
            "confident_rate": int(self.confident) / n,
        }
