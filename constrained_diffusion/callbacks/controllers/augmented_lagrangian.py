"""The augmented Lagrangian: multipliers and a square together, which needs no infinite coefficient."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from constrained_diffusion.callbacks.controllers.base import ConstraintCallback, Violations
from constrained_diffusion.fine_tuning.steering import Steering


class AugmentedLagrangian(ConstraintCallback):
    """Every n steps lambda <- relu(lambda + c S), and c grows where S has not shrunk (Nocedal and Wright, alg. 17.4).

    Minimised is L_diff + sum_k (relu(lambda_k + c_k S_k)^2 - lambda_k^2) / 2 c_k, S_k = E[max_j(g_j - delta_j)].

    Args:
        initial: the first c of each constraint.
        growth_factor: > 1, by which c grows.
        every_n_steps: n, optimiser steps between two updates of the multipliers.
        progress: c grows where S is positive and above this share of what it was at the last update.
        max_coefficient: c grows no further; told at the end where the constraint still does not hold.
        slack_tolerance: a constraint holds where S is at most this.
        smoothing: of S.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        initial: float = 1.0,
        growth_factor: float = 2.0,
        every_n_steps: int = 20,
        progress: float = 0.5,
        max_coefficient: float = 1e4,
        slack_tolerance: float = 1e-3,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(smoothing)
        if growth_factor <= 1 or every_n_steps < 1 or not 0 < initial <= max_coefficient or not 0 < progress < 1:
            raise ValueError(
                "expected growth_factor > 1, every_n_steps >= 1, 0 < initial <= max_coefficient and 0 < progress < 1, "
                f"got {growth_factor}, {every_n_steps}, {initial}, {max_coefficient} and {progress}."
            )
        if slack_tolerance < 0:
            raise ValueError(f"expected slack_tolerance >= 0, got {slack_tolerance}.")
        self.initial, self.growth_factor, self.every_n_steps = initial, growth_factor, every_n_steps
        self.progress, self.max_coefficient, self.slack_tolerance = progress, max_coefficient, slack_tolerance
        self.before: Tensor | None = None  #: the positive part of S at the last update of the multipliers
        self.cap = ("coefficient", max_coefficient)

    def start(self, trainer: Trainer, steering: Steering) -> None:
        steering.penalty_coefficient.zero_()
        if not self.steps:  # a resumed fit finds them in the checkpoint
            steering.multiplier.zero_()
            steering.augmentation.fill_(self.initial)

    def satisfied(self, steering: Steering, violations: Violations) -> Tensor:
        return violations.slack <= self.slack_tolerance

    def update(self, trainer: Trainer, steering: Steering, violations: Violations) -> None:
        if self.steps % self.every_n_steps:
            return
        slack, c = violations.slack, steering.augmentation
        steering.multiplier.copy_(torch.relu(steering.multiplier + c * slack))
        excess = torch.relu(slack)
        if self.before is not None:
            stuck = (excess > self.slack_tolerance) & (excess > self.progress * self.before.to(excess))
            c.copy_(torch.where(stuck, (c * self.growth_factor).clamp(max=self.max_coefficient), c))
        self.before, self.capped = excess, c >= self.max_coefficient

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "before": self.before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.before = state_dict["before"]
