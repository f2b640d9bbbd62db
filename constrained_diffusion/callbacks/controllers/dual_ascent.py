"""Lagrange multipliers that rise while a constraint does not hold: dual ascent, with any optimiser, and nu-PI.

Minimised is L_diff + sum_k lambda_k S_k, S_k = E[max_j(g_j - delta_j)], so the constraint is one on the mean: S_k <= 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import SGD, Optimizer

from constrained_diffusion.callbacks.controllers.base import ConstraintCallback, Violations
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.runtime.distribution import needs_extra


class DualAscent(ConstraintCallback):
    """lambda <- relu(lambda + lr S) after every step: projected ascent on the dual (Khalafi et al. 2024).

    Args:
        optimizer: a factory, called with the list of multipliers, whose gradient is -S; plain ascent with a learning
            rate of 0.1 by default. Adam moves a multiplier by its learning rate whatever S is: not advised.
        initial: the first multiplier of each constraint.
        max_multiplier: lambda rises no further; told at the end where the constraint still does not hold.
        slack_tolerance: a constraint holds where S is at most this.
        smoothing: of S.

    Raises:
        ValueError: a setting is negative, or the first multiplier above the largest.
    """

    def __init__(
        self,
        optimizer: Callable[[list[Tensor]], Optimizer] | None = None,
        initial: float = 0.0,
        max_multiplier: float = 1e4,
        slack_tolerance: float = 1e-3,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(smoothing)
        if not 0 <= initial <= max_multiplier or slack_tolerance < 0:
            raise ValueError(
                "expected 0 <= initial <= max_multiplier and slack_tolerance >= 0, "
                f"got {initial}, {max_multiplier} and {slack_tolerance}."
            )
        self.factory = optimizer or partial(SGD, lr=0.1)
        self.initial, self.max_multiplier, self.slack_tolerance = initial, max_multiplier, slack_tolerance
        self.cap = ("multiplier", max_multiplier)
        self.optimizer: Optimizer | None = None
        self._loaded: dict[str, Any] | None = None

    def start(self, trainer: Trainer, steering: Steering) -> None:
        steering.penalty_coefficient.zero_()
        if not self.steps:  # a resumed fit finds its multipliers in the checkpoint
            steering.multiplier.fill_(self.initial)
        self.optimizer = self.factory([steering.multiplier])
        if self._loaded is not None:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": self._loaded, "param_groups": groups})

    def satisfied(self, steering: Steering, violations: Violations) -> Tensor:
        return violations.slack <= self.slack_tolerance

    def update(self, trainer: Trainer, steering: Steering, violations: Violations) -> None:
        assert self.optimizer is not None
        steering.multiplier.grad = -violations.slack.to(steering.multiplier)  # torch's optimisers descend
        self.optimizer.step()
        steering.multiplier.grad = None
        steering.multiplier.clamp_(min=0, max=self.max_multiplier)
        self.capped = steering.multiplier >= self.max_multiplier

    def state_dict(self) -> dict[str, Any]:
        # Without the settings, which the config has: cooper's are of a class that `weights_only` does not read.
        state = None if self.optimizer is None else self.optimizer.state_dict()["state"]
        return {**super().state_dict(), "optimizer": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._loaded = state_dict["optimizer"]


class NuPI(DualAscent):
    """Multipliers by a PI controller: the proportional part damps what dual ascent overshoots (Sohrabi et al. 2024).

    The controller is `cooper.optim.nuPI`; of cooper the rest, which owns the training step, has no place under
    Lightning's automatic optimisation.

    Args:
        lr: eta.
        proportional: kappa_p.
        integral: kappa_i.
        nu: smoothing of the error in the proportional part.
        kwargs: of `DualAscent`.

    Raises:
        ImportError: cooper is not installed.
    """

    def __init__(
        self, lr: float = 0.1, proportional: float = 1.0, integral: float = 1.0, nu: float = 0.0, **kwargs: Any
    ) -> None:
        with needs_extra("dual", "NuPI needs cooper"):
            from cooper.optim.torch_optimizers.nupi_optimizer import nuPI
        gains: dict[str, Any] = {"Kp": torch.tensor(proportional), "Ki": torch.tensor(integral)}
        super().__init__(partial(nuPI, lr=lr, ema_nu=nu, **gains), **kwargs)
