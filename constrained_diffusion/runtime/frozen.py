"""The frozen classifier that constraints and rewards on classes have in common."""

from __future__ import annotations

import copy
import itertools
from typing import Self

import torch
from torch import Tensor, nn


class FrozenClassifier(nn.Module):
    """Mixin of an objective that asks a classifier; stands before `Constraint` or `Reward` among the bases.

    It has no `__init__` of its own: call `freeze` in yours, after `super().__init__`.
    """

    classifier: nn.Module
    preprocess: nn.Module
    label: int

    def freeze(self, classifier: nn.Module, label: int, preprocess: nn.Module | None) -> None:
        """Keep frozen copies of both networks, in eval mode whatever `.train()` is called.

        Args:
            classifier: maps its input to logits `(B, n)`, as a tensor or as the `.logits` of an object.
            label: the class that is asked for, counted from 0.
            preprocess: maps samples in the data's units to the classifier's input; nothing for None.

        Raises:
            ValueError: the label is negative.
        """
        if label < 0:
            raise ValueError(f"{type(self).__name__} expects a label counted from 0, got {label}.")
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)
        self.preprocess = nn.Identity() if preprocess is None else copy.deepcopy(preprocess).requires_grad_(False)
        self.label = label
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the objective alone; classifier and preprocessing stay in eval mode."""
        super().train(mode)
        self.classifier.eval()
        self.preprocess.eval()
        return self

    def logits(self, clean: Tensor) -> Tensor:
        """Return the classifier's logits `(B, n)` for `clean` `(B, *shape)` in the data's units."""
        result = self.classifier(self.preprocess(clean))
        logits: Tensor = result if isinstance(result, Tensor) else result.logits
        return logits

    @torch.no_grad()
    def check_data(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the classifier cannot take samples of `shape` (without batch), or has no such label."""
        objective, name = type(self).__name__, type(self.classifier).__name__
        like = next(itertools.chain(self.classifier.parameters(), self.classifier.buffers()), torch.empty(0))
        try:
            logits = self.logits(like.new_zeros((1, *shape)))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"the classifier {name} of {objective} cannot take samples of shape {tuple(shape)} "
                f"({str(error).splitlines()[0]}): give a preprocess that maps them to its input, or a classifier "
                "that was trained on such data."
            ) from error
        if logits.ndim != 2 or len(logits) != 1:
            raise ValueError(
                f"{objective} expects logits of shape (B, number of classes), but {name} returns "
                f"{tuple(logits.shape)} for a single sample; give a classifier of whole samples."
            )
        if self.label >= logits.shape[1]:
            raise ValueError(
                f"{objective} was asked for label {self.label}, but {name} has {logits.shape[1]} classes, "
                f"0 to {logits.shape[1] - 1}; choose one of these, or a classifier that knows the label."
            )
