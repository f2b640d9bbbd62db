"""Constraints on what a classifier sees in a sample."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn

from constrained_diffusion.objectives import Constraint, register


def class_probability(logits: Tensor, label: int) -> Tensor:
    """Return p(label | x), shape `(B,)`, from `logits` `(B, n)`; the softmax runs in float32 or wider.

    >>> class_probability(torch.tensor([[0.0, 0.0]]), 1)
    tensor([0.5000])
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)[:, label]


@register()
class ClassProbability(Constraint):
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

    Raises:
        ValueError: the threshold or the label is out of range.
    """

    def __init__(
        self,
        classifier: nn.Module,
        label: int,
        threshold: float = 0.1,
        preprocess: nn.Module | None = None,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__(tolerance)
        if not 0 <= threshold < 1:
            raise ValueError(f"ClassProbability expects a threshold in [0, 1), got {threshold}; the paper uses 0.1.")
        if label < 0:
            raise ValueError(f"ClassProbability expects a label counted from 0, got {label}.")
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)
        self.preprocess = nn.Identity() if preprocess is None else copy.deepcopy(preprocess).requires_grad_(False)
        self.label, self.threshold = label, threshold
        self.train(self.training)

    def train(self, mode: bool = True) -> ClassProbability:
        """Set the mode of the constraint alone; classifier and preprocessing stay in eval mode."""
        super().train(mode)
        self.classifier.eval()
        self.preprocess.eval()
        return self

    def logits(self, clean: Tensor) -> Tensor:
        """Return the classifier's logits `(B, n)` for `clean` `(B, *shape)` in the data's units."""
        result = self.classifier(self.preprocess(clean))
        logits: Tensor = result if isinstance(result, Tensor) else result.logits
        return logits

    def forward(self, clean: Tensor) -> Tensor:
        """Return g = p(label | clean) - threshold, shape `(B,)`, values in [-threshold, 1 - threshold]."""
        return class_probability(self.logits(clean), self.label) - self.threshold

    @torch.no_grad()
    def check_data(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the classifier cannot take samples of `shape` (without batch), or has no such label."""
        name = type(self.classifier).__name__
        like = next(itertools.chain(self.classifier.parameters(), self.classifier.buffers()), torch.empty(0))
        try:
            logits = self.logits(like.new_zeros((1, *shape)))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"the classifier {name} of ClassProbability cannot take samples of shape {tuple(shape)} "
                f"({str(error).splitlines()[0]}): give a preprocess that maps them to its input, or a classifier "
                "that was trained on such data."
            ) from error
        if logits.ndim != 2 or len(logits) != 1:
            raise ValueError(
                f"ClassProbability expects logits of shape (B, number of classes), but {name} returns "
                f"{tuple(logits.shape)} for a single sample; give a classifier of whole samples."
            )
        if self.label >= logits.shape[1]:
            raise ValueError(
                f"ClassProbability was asked for label {self.label}, but {name} has {logits.shape[1]} classes, "
                f"0 to {logits.shape[1] - 1}; choose one of these, or a classifier that knows the label."
            )
