"""`AskedClassEvaluation`: what the judge sees where a model is asked for a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from constrained_diffusion.condition import Condition
from constrained_diffusion.domains.images.class_evaluation import ClassEvaluation, as_stored
from constrained_diffusion.evaluation import Figure
from constrained_diffusion.statistics import clopper_pearson_interval


class AskedCounts(Metric):
    """How many samples that were asked for class a the judge sees as class b, and of how many it is unsure.

    Args:
        num_classes: C.
        confidence: a prediction less probable than this shows none of the classes.
    """

    is_differentiable = False
    full_state_update = False

    seen: Tensor
    unsure: Tensor

    def __init__(self, num_classes: int, confidence: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.confidence = num_classes, confidence
        self.add_state("seen", torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("unsure", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, asked: Tensor, predicted: Tensor, probability: Tensor) -> None:
        """Count one batch: `asked` and `predicted` classes and the latter's `probability`, `(B,)` each."""
        pairs = torch.bincount(asked * self.num_classes + predicted, minlength=self.num_classes**2)
        self.seen = self.seen + pairs.view(self.num_classes, -1)
        self.unsure = self.unsure + torch.bincount(asked[probability < self.confidence], minlength=self.num_classes)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the counts by class asked and seen, `(C, C)`, and those of unsure ones by class asked, `(C,)`."""
        return self.seen, self.unsure


class AskedClassEvaluation(ClassEvaluation):
    """`ClassEvaluation` of a class-conditional model: besides all that, whether it draws what it is asked for.

    Args:
        asked: name of the condition that holds the class, `(B,)`.
        kwargs: see `ClassEvaluation`.
    """

    def __init__(self, *args: Any, asked: str = "class_labels", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked = asked
        self.counts = AskedCounts(self.num_classes, self.confidence)

    @property
    def figures(self) -> Sequence[Figure]:
        """What is drawn where the label is asked for, where others are, and then the figures of all samples."""
        if self.label is None:
            return (Figure("agreement", "asked for a class, the judge sees it", "rate", "more"), *super().figures)
        return (
            Figure("asked_label_rate", f"asked for {self.subject}, the judge sees one", "rate", "less", headline=True),
            Figure("asked_confident_rate", f"asked for {self.subject}, the judge is sure", "rate", "more"),
            Figure("asked_histogram", f"drawn where {self.subject} are asked for", "histogram", marked=self.label),
            Figure("agreement", "asked for another class, the judge sees it", "rate", "more", headline=True),
            *super().figures,
        )

    @torch.no_grad()
    def update_asked(self, clean: Tensor, condition: Condition | None) -> None:
        """Judge one batch of images `(B, *shape)` in [0, 1], by the classes that they were asked for.

        Raises:
            ValueError: nothing was asked for, or images hold NaN.
        """
        if condition is None or self.asked not in condition:
            raise ValueError(
                f"AskedClassEvaluation expects samples that were asked for a class, by the condition '{self.asked}', "
                f"but got {', '.join(condition or ()) or 'none'}; give the data module `conditions`, or take "
                "ClassEvaluation."
            )
        self.update(clean)
        predicted, probability = self._classify(as_stored(self.preprocess(clean)))
        asked = condition[self.asked].to(predicted.device)
        known = asked < self.num_classes  # beyond them nothing is asked for
        self.counts.update(asked[known], predicted[known], probability[known])

    def compute(self) -> dict[str, Any]:
        """Return what `ClassEvaluation` does, with the figures of what was asked for; call it on every rank."""
        found = super().compute()
        seen, unsure = self.counts.compute()
        rows = [c for c in range(self.num_classes) if c != self.label]
        agreeing, others = int(seen.diag()[rows].sum()), int(seen[rows].sum())
        rates = {"agreement": (agreeing, others)}
        if self.label is not None:
            total = int(seen[self.label].sum())
            rates["asked_label_rate"] = int(seen[self.label, self.label]), total
            rates["asked_confident_rate"] = total - int(unsure[self.label]), total
            found["metrics"]["asked_histogram"] = seen[self.label].tolist()
        for name, (count, n) in rates.items():
            found["metrics"][name] = count / n if n else None
            found["metrics"][f"{name}_95"] = list(clopper_pearson_interval(count, n)) if n else None
        return found
