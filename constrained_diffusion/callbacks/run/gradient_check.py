"""A constraint whose gradient is zero cannot be learnt; it is told before time is spent on it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from constrained_diffusion.objectives import measure_constraint
from constrained_diffusion.runtime.precision import to_float32, without_autocast

LOOKS = 10  #: batches


class GradientCheck(Callback):
    """Warns of a constraint that rows of the training set violate, but whose gradient is zero in all these rows.

    It looks at the clean samples of the first batches, until it has seen rows that violate the constraint. A rounding,
    a comparison or a saturated sigmoid in g does that. Constraints on the whole step are left out.
    """

    def __init__(self) -> None:
        self._looks: dict[int, int] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        steering = getattr(pl_module, "steering", None)
        constraints = () if steering is None else steering.constraints
        judged = [k for k, constraint in enumerate(constraints) if not constraint.needs_step_record]
        self._looks = dict.fromkeys(judged, LOOKS)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for k in list(self._looks):
            violating, moved = violating_and_moved(pl_module.steering.constraints[k], batch.clean)
            self._looks[k] = 0 if violating else self._looks[k] - 1
            if not self._looks[k]:
                del self._looks[k]
            if violating and not moved:
                rank_zero_warn(
                    f"the gradient of '{pl_module.steering.names[k]}' is zero in all {violating} training rows that "
                    "violate it: the penalty cannot move the model; let g(x) fall smoothly towards feasible samples "
                    "(a logit or a distance in place of a rounding, a comparison or a saturated probability)."
                )


@torch.enable_grad()
def violating_and_moved(constraint: Any, clean: Tensor) -> tuple[int, int]:
    """Return how many rows of `clean` `(B, *shape)` violate the constraint, and in how many of these dg/dx is not 0."""
    clean = to_float32(clean).detach().clone().requires_grad_()
    with without_autocast(clean):
        values = measure_constraint(constraint, clean)
    excess = torch.relu(values - constraint.tolerance)
    violating = (excess > 0).any(1)
    if not excess.requires_grad:
        return int(violating.sum()), 0
    (gradient,) = torch.autograd.grad(excess.sum(), clean, allow_unused=True)
    if gradient is None:
        return int(violating.sum()), 0
    return int(violating.sum()), int((gradient.flatten(1) != 0).any(1).sum())
