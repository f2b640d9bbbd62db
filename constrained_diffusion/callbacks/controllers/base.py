"""The base of everything that steers penalty coefficients and multipliers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from constrained_diffusion.fine_tuning.steering import Steering


class Violations(NamedTuple):
    """How one optimiser step stands with the constraints, over all ranks and accumulated micro-batches."""

    penalty: Tensor  #: P `(K,)`, mean of relu(g - delta)^2 over the rows below T_phi
    slack: Tensor  #: S `(K,)`, mean of what the multipliers act on; above 0 where the constraint does not hold


class SteeredModule(Protocol):
    """What a constraint callback needs of a module; `ConstrainedDiffusion` offers it.

    `training_step` must return a dict with `penalty` P `(K,)`, `slack` S `(K,)`, both averaged over all ranks, and
    `penalty_rows`, how many rows of all ranks they are averages of; detached. A module may tell, by `step_skipped`,
    that the optimiser step just over was none (float16 gradients overflowed, and `GradScaler` left it out).
    """

    steering: Steering  #: what the callback writes, and the next step is multiplied by


class ConstraintCallback(Callback, ABC):
    """Sees the violations of every optimiser step and writes the coefficients.

    Subclass it and write `update`; the base averages over ranks' and accumulated micro-batches' rows, so that every
    rank decides the same, and calls `update` once per optimiser step.

    A fit that ends while a constraint does not hold says so, and names it.

    Args:
        smoothing: 0 hands over what a step measured; s in (0, 1) its moving average, s times the one before and 1 - s
            times the new value; a whole number n > 1 the mean over the rows of the last n steps.

    Raises:
        ValueError: smoothing is none of these.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        if not (0 <= smoothing < 1 or (smoothing > 1 and float(smoothing).is_integer())):
            raise ValueError(
                "smoothing must be the weight of the past, in [0, 1), or a whole number of steps to average, at least "
                f"2; got {smoothing}."
            )
        self.smoothing = smoothing
        self._recent: list[Tensor] = []  # sums and counts of the steps in the window
        self.steps = 0  #: optimiser steps seen, in the checkpoint
        self.micro_batches = 0  #: how many the last step was made of; the last one of an epoch may have fewer
        self.violated: list[str] = []  #: names of the constraints that did not hold when the fit ended
        self.cap: tuple[str, float] | None = None  #: what is steered, and the most that it may be
        self.capped: Tensor | None = None  #: `(K,)` of bool, where it is as much as that
        self._smoothed: Tensor | None = None
        self._sums: list[Tensor] = []

    @abstractmethod
    def update(self, trainer: Trainer, steering: Steering, violations: Violations) -> None:
        """React to one optimiser step.

        Write `steering.penalty_coefficient` or `steering.multiplier` in place; `trainer.should_stop` ends the fit.
        """

    def skip(self, trainer: Trainer, steering: Steering) -> None:
        """React to an optimiser step that was left out, after which the weights are what they were: by default not."""

    def satisfied(self, steering: Steering, violations: Violations) -> Tensor:
        """Return which constraints hold, `(K,)` of bool: by default those with P <= tau."""
        return violations.penalty <= steering.stop_below

    def start(self, trainer: Trainer, steering: Steering) -> None:
        """Write the coefficients before the first step; after a resume too."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steering = getattr(pl_module, "steering", None)
        if steering is None or not steering.names:
            raise ValueError(
                f"{type(self).__name__} steers the penalties of a module with constraints, but the model has none; add "
                "`constraints` to the model, or take the callback out."
            )

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start(trainer, pl_module.steering)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        values, rows = torch.stack([outputs["penalty"], outputs["slack"]]), outputs["penalty_rows"]
        self._sums.append(torch.cat([(values * rows).flatten(), rows.reshape(1).to(values)]))
        if trainer.global_step > self.steps:
            # A mean of means would count the rows of a micro-batch with few of them more.
            total = torch.stack(self._sums).sum(0)
            self.micro_batches = len(self._sums)
            self._sums.clear()
            self.steps = trainer.global_step
            if getattr(pl_module, "step_skipped", False):
                self.skip(trainer, pl_module.steering)
                return
            self._smoothed = self._smooth(total).view_as(values)
            for k, of_mean in enumerate(pl_module.steering.in_expectation):
                if of_mean:  # P of the mean, not the mean of what P was in each step
                    self._smoothed[0, k] = self._smoothed[1, k].clamp(min=0).square()
            self.update(trainer, pl_module.steering, Violations(*self._smoothed.unbind()))

    def _smooth(self, total: Tensor) -> Tensor:
        """Return P and S, steered by, from the sums and the count of one step, `(2 K + 1,)`."""
        window, decay = (int(self.smoothing), 0.0) if self.smoothing > 1 else (1, self.smoothing)
        self._recent = [*(step.to(total) for step in self._recent), total][-window:]
        sums = torch.stack(self._recent).sum(0)
        now = sums[:-1] / sums[-1].clamp(min=1)
        past = now if self._smoothed is None else self._smoothed.to(now).flatten()
        return decay * past + (1 - decay) * now

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._smoothed is None:
            return
        violations = Violations(*self._smoothed.unbind())
        steering: Steering = pl_module.steering
        names, holds = steering.names, self.satisfied(steering, violations).tolist()
        holds = [held or not verdict for held, verdict in zip(holds, steering.has_verdict, strict=True)]
        self.violated = [name for name, held in zip(names, holds, strict=True) if not held]
        for k, name in enumerate(names):
            if not holds[k]:
                measured = f"P = {violations.penalty[k]:.3g}, mean g - delta = {violations.slack[k]:.3g}"
                rank_zero_info(
                    f"{type(self).__name__}: infeasible on the training rows, '{name}' still does not hold after "
                    f"{self.steps} steps ({measured}{_unjudged(steering, k)}); {self._advice(k)}."
                )

    def _advice(self, constraint: int) -> str:
        if self.cap is None or self.capped is None or not self.capped[constraint]:
            return "fit longer, let its coefficient or multiplier grow faster, or allow more (tolerance)"
        what, most = self.cap
        return f"its {what} reached its cap of {most:g}: no model near this one may satisfy it"

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "smoothed": self._smoothed, "recent": self._recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self._smoothed = state_dict["steps"], state_dict["smoothed"]
        self._recent = state_dict.get("recent", [])


def _unjudged(steering: Steering, constraint: int) -> str:
    """Return a remark where a constraint is aimed at beyond its verdict: samples may be feasible all the same."""
    margin: float = steering.constraints[constraint].margin  # type: ignore[assignment]
    return f", g with its margin of {margin:.2g}, which samples are not judged by" if margin else ""
