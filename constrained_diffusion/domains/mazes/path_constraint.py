"""What constraints on plans have in common: they measure along the path, and reduce what they measured."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.plans import check_plans
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime.precision import to_float32

Reduction = Literal["each", "worst"]


class PathConstraint(Constraint):
    """A constraint on plans `(B, L, S, C)`, in cells; subclass and write `along`.

    Args:
        reduction: "each" keeps all values, `(B, m)`, and the penalty of a plan is then the sum over them, so that a
            plan that runs through a zone for long weighs more than one that touches it; frames of a token that stands
            count each. "worst" keeps the largest value, `(B,)`, and the gradient reaches that point alone.
        tolerance: delta, in units of g.

    Raises:
        ValueError: an unknown reduction.
    """

    def __init__(self, reduction: Reduction, tolerance: float) -> None:
        super().__init__(tolerance)
        if reduction not in get_args(Reduction):
            raise ValueError(
                f"{type(self).__name__} expects a reduction of {' or '.join(get_args(Reduction))}, got '{reduction}'."
            )
        self.reduction = reduction

    @abstractmethod
    def along(self, clean: Tensor) -> Tensor:
        """Return g at each place, `(B, ...)`, of plans `(B, L, S, C)`; negative means feasible."""

    def forward(self, clean: Tensor) -> Tensor:
        """Return g of plans `(B, L, S, C)`, in cells: `(B, m)`, or `(B,)` for the worst; negative means feasible.

        Half precision is widened first: a position of 3 cells has steps of 0.016 in bfloat16.
        """
        values = self.along(to_float32(clean)).flatten(1)
        return values if self.reduction == "each" else values.amax(1)

    def check_data(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where samples of `shape` (without batch) are no plans, or too short to be measured."""
        check_plans(shape, type(self).__name__)
        if not self.along(torch.zeros(1, *shape, device=next(self.buffers(), torch.empty(0)).device)).numel():
            raise ValueError(
                f"{type(self).__name__} expects plans with more frames than {tuple(shape[:2])} (tokens, frames each); "
                "choose a planner with more of either."
            )


def length(x: Tensor, y: Tensor) -> Tensor:
    """Return sqrt(x^2 + y^2), with gradient 0 where it is 0, whose own derivative is infinite."""
    squared = x.square() + y.square()
    zero = squared == 0
    return torch.where(zero, squared, squared.masked_fill(zero, 1.0).sqrt())
