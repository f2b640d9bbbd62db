"""Rewards of what a classifier sees in a sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from constrained_diffusion.objectives import Reward, register
from constrained_diffusion.runtime.frozen import FrozenClassifier


def log_odds(logits: Tensor, label: int) -> Tensor:
    """Return log p(label | x) - log(1 - p(label | x)), shape `(B,)`, from `logits` `(B, n)`, n >= 2.

    With p the softmax of the logits l, this is l_label - logsumexp of all the others: no p is formed that could round
    to 0 or 1. Computed in float32 or wider.

    >>> log_odds(torch.tensor([[200.0, -100.0]]), 0)
    tensor([300.])
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = torch.cat([wide[:, :label], wide[:, label + 1 :]], dim=1)
    return wide[:, label] - others.logsumexp(dim=1)


@register()
class LogOdds(FrozenClassifier, Reward):
    """The class should appear: r(x) = log p(label | x) - log(1 - p(label | x)), in nats; 0 is an even chance.

    Unlike the probability it does not saturate: the gradient of a sample that is far from the class, or deep inside it,
    is as large as that of one between. The classifier is a frozen copy of the one given, in eval mode whatever
    `.train()` is called.

    Args:
        classifier: maps its input to logits `(B, n)`, n >= 2, as a tensor or as the `.logits` of an object.
        label: the wanted class, counted from 0.
        preprocess: maps samples in the data's units to the classifier's input (resize, normalise); nothing by default.

    Raises:
        ValueError: the label is negative.
    """

    def __init__(self, classifier: nn.Module, label: int, preprocess: nn.Module | None = None) -> None:
        super().__init__()
        self.freeze(classifier, label, preprocess)

    def forward(self, clean: Tensor) -> Tensor:
        """Return the log odds of the label for `clean` `(B, *shape)`, shape `(B,)`, any real number."""
        return log_odds(self.logits(clean), self.label)
