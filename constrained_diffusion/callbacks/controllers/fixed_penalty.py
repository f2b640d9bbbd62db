"""A penalty whose coefficient stays as it is, and one that grows only where a constraint does not hold."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from constrained_diffusion.callbacks.controllers.base import ConstraintCallback, Violations
from constrained_diffusion.fine_tuning.steering import Steering


class FixedPenalty(ConstraintCallback):
    """C stays the same: the quadratic penalty method with one coefficient (P eq. 14).

    It ends near the constraint, not on it: at a violation of about lambda / 2C, lambda being the KKT multiplier.

    Args:
        coefficient: C.
        stop_below: tau; in a step with P <= tau the penalty is released.

    Raises:
        ValueError: a setting is negative.
    """

    def __init__(self, coefficient: float = 1.0, stop_below: float = 0.0) -> None:
        super().__init__()
        if coefficient < 0 or stop_below < 0:
            raise ValueError(f"expected coefficient and stop_below >= 0, got {coefficient} and {stop_below}.")
        self.coefficient, self.stop_below = coefficient, stop_below

    def start(self, trainer: Trainer, steering: Steering) -> None:
        steering.penalty_coefficient.fill_(self.coefficient)
        steering.stop_below.fill_(self.stop_below)

    def update(self, trainer: Trainer, steering: Steering, violations: Violations) -> None:
        pass


class FeasibilityGrowth(ConstraintCallback):
    """C_k grows by a factor every n steps while constraint k has P_k > tau_k, and stays where it holds.

    Args:
        initial: the first coefficient of each constraint.
        growth_factor: > 1.
        every_n_steps: n, optimiser steps between two looks.
        max_coefficient: C grows no further; told at the end where the constraint still does not hold.
        stop_below: tau.
        smoothing: of the P that decides on growth.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        initial: float = 0.05,
        growth_factor: float = 1.5,
        every_n_steps: int = 10,
        max_coefficient: float = 1e4,
        stop_below: float = 0.01,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(smoothing)
        if growth_factor <= 1 or every_n_steps < 1 or not 0 < initial <= max_coefficient or stop_below < 0:
            raise ValueError(
                "expected growth_factor > 1, every_n_steps >= 1, 0 < initial <= max_coefficient and stop_below >= 0, "
                f"got {growth_factor}, {every_n_steps}, {initial}, {max_coefficient} and {stop_below}."
            )
        self.initial, self.growth_factor, self.every_n_steps = initial, growth_factor, every_n_steps
        self.max_coefficient, self.stop_below = max_coefficient, stop_below
        self.cap = ("coefficient", max_coefficient)

    def start(self, trainer: Trainer, steering: Steering) -> None:
        steering.stop_below.fill_(self.stop_below)
        if not self.steps:  # a resumed fit finds its coefficients in the checkpoint
            steering.penalty_coefficient.fill_(self.initial)

    def update(self, trainer: Trainer, steering: Steering, violations: Violations) -> None:
        if self.steps % self.every_n_steps == 0:
            grown = (steering.penalty_coefficient * self.growth_factor).clamp(max=self.max_coefficient)
            held = self.satisfied(steering, violations)
            steering.penalty_coefficient.copy_(torch.where(held, steering.penalty_coefficient, grown))
        self.capped = steering.penalty_coefficient >= self.max_coefficient
