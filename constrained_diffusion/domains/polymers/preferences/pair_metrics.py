"""How well log merits tell which of two was preferred: accuracy and calibration; ties say nothing and are left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import BinaryAccuracy, BinaryCalibrationError


def decided(merits: Tensor, outcomes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of the first, and whether it was preferred, `(k,)` each, for pairs that are no ties.

    Args:
        merits: log merits, `(B, 2)`.
        outcomes: 1 where the first is preferred, 0 where the second is, 0.5 for a tie, `(B,)`.
    """
    kept = outcomes != 0.5
    return (merits[kept, 0] - merits[kept, 1]).sigmoid(), (outcomes[kept] > 0.5).long()


class PairAccuracy(BinaryAccuracy):
    """Share of pairs in which the one of higher merit was preferred."""

    def update(self, merits: Tensor, outcomes: Tensor, *args: Any) -> None:
        chance, preferred = decided(merits, outcomes)
        if len(chance):  # torchmetrics refuses batches of no rows
            super().update(chance, preferred)


class PairCalibrationError(BinaryCalibrationError):
    """Expected calibration error of the probabilities that merits give, over 15 bins; NaN of ties alone."""

    def update(self, merits: Tensor, outcomes: Tensor, *args: Any) -> None:
        chance, preferred = decided(merits, outcomes)
        if len(chance):
            super().update(chance, preferred)

    def compute(self) -> Tensor:
        return super().compute() if len(self.confidences) else torch.tensor(torch.nan, device=self.device)
