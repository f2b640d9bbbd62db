"""Constraints on what a classifier sees in a sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from constrained_diffusion.objectives import Constraint, register
from constrained_diffusion.runtime.frozen import FrozenClassifier


def class_probability(logits: Tensor, label: int) -> Tensor:
    """Return p(label | x), shape `(B,)`, from `logits` `(B, n)`; the softmax runs in float32 or wider.

    >>> class_probability(torch.tensor([[0.0, 0.0]]), 1)
    tensor([0.5000])
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)[:, label]


@register()
class ClassProbability(FrozenClassifier, Constraint):
    """The class must not appear: g(x) = p(label | x) - threshold, negative means feasible (P eq. 16).

    The paper's own g has a ReLU around it; the penalty has one already, so it is left out here and g says how far
    inside a feasible sample lies. Gradients flow from g to x; the classifier itself is a frozen copy of the one given,
    in eval mode whatever `.train()` is called.

    Args:
        classifier: maps its input to logits `(B, n)`, as a tensor or as the `.logits` of an object.
        label: the class to keep out, counted from 0.
        threshold: the largest acceptable probability, in [0, 1).
        preprocess: maps samples in the data's units to the classifier's input (resize, normalise); nothing by default.
        tolerance: delta of eq. 14, in units of probability.
        margin: for safety the penalty aims at a probability of threshold - margin, while a sample counts as violating
            only above the threshold; in [0, threshold].

    Raises:
        ValueError: the threshold, the label or the margin is out of range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        label: int,
        threshold: float = 0.1,
        preprocess: nn.Module | None = None,
        tolerance: float = 0.0,
        margin: float = 0.0,
    ) -> None:
        super().__init__(tolerance)
        if not 0 <= threshold < 1:
            raise ValueError(f"ClassProbability expects a threshold in [0, 1), got {threshold}; the paper uses 0.1.")
        if not 0 <= margin <= threshold:
            raise ValueError(f"ClassProbability expects a margin in [0, threshold], [0, {threshold}], got {margin}.")
        self.threshold, self.margin = threshold, margin
        self.freeze(classifier, label, preprocess)

    def forward(self, clean: Tensor) -> Tensor:
        """Return g = p(label | clean) - (threshold - margin), shape `(B,)`."""
        return class_probability(self.logits(clean), self.label) - (self.threshold - self.margin)
