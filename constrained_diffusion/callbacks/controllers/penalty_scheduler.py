"""The paper's schedule: C grows by r every n steps, and tau is enforced."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning.pytorch import Trainer

from constrained_diffusion.callbacks.controllers.base import ConstraintCallback, Violations
from constrained_diffusion.callbacks.controllers.delayed_flag import DelayedFlag
from constrained_diffusion.fine_tuning.penalty import geometric_growth
from constrained_diffusion.fine_tuning.steering import Steering

MOST = 38  #: single precision ends at 3e38


class PenaltyScheduler(ConstraintCallback):
    """C = c * r^floor(min(i, I) / n), and no penalty where P <= tau (P Algorithm 1, Table 1).

    Args:
        initial: c, the first coefficient: one for all constraints, or a list with one for each, in their order, where
            their g have different units.
        growth_factor: r >= 1.
        every_n_steps: n, optimiser steps between two growths.
        max_iterations: I; with scope "fit" it caps the growth (it does not end the fit), with scope "batch" it bounds
            the inner loop on one batch.
        stop_below: tau, compared with P averaged over ranks and accumulated micro-batches.
        when_satisfied: where P <= tau, "release" the penalty for that step, or "stop" the fit; with scope "fit" it
            stops after one more step, because the device's answer is read one step late.
        scope: "fit" counts i over all optimiser steps; "batch" is Algorithm 1 to the letter: the same rows again with
            fresh noise, i and C starting anew for each batch, left as soon as P <= tau for all constraints.
        smoothing: of the P that is compared with tau; the release within a step sees that step's own.

    Raises:
        ValueError: a setting is out of range, or `initial` has not one coefficient for each constraint.
    """

    def __init__(
        self,
        initial: float | list[float] = 0.05,
        growth_factor: float = 1.2,
        every_n_steps: int = 10,
        max_iterations: int = 50,
        stop_below: float = 0.01,
        when_satisfied: Literal["release", "stop"] = "release",
        scope: Literal["fit", "batch"] = "fit",
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(smoothing)
        if growth_factor < 1:
            raise ValueError(
                f"growth_factor must be at least 1, so that the penalty never weakens; got {growth_factor}."
            )
        coefficients = initial if isinstance(initial, list) else [initial]
        if not coefficients or min(coefficients) <= 0 or stop_below < 0:
            raise ValueError(
                f"expected initial > 0 and stop_below >= 0, got initial={initial}, stop_below={stop_below}."
            )
        if every_n_steps < 1 or max_iterations < 1:
            raise ValueError(
                "every_n_steps and max_iterations count optimiser steps and must be at least 1, "
                f"got {every_n_steps} and {max_iterations}."
            )
        growths = max_iterations // every_n_steps
        power = math.log10(max(coefficients)) + growths * math.log10(growth_factor)
        if not power < MOST:
            raise ValueError(
                f"PenaltyScheduler would let C grow {growths} times by {growth_factor:g} to 1e{power:.0f}, beyond "
                f"single precision (1e{MOST}); lower growth_factor or max_iterations, or raise every_n_steps."
            )
        if when_satisfied not in ("release", "stop") or scope not in ("fit", "batch"):
            raise ValueError(
                "expected when_satisfied 'release' or 'stop' and scope 'fit' or 'batch', "
                f"got '{when_satisfied}' and '{scope}'."
            )
        self.initial, self.growth_factor, self.every_n_steps = initial, growth_factor, every_n_steps
        self.max_iterations, self.stop_below = max_iterations, stop_below
        self.when_satisfied, self.scope = when_satisfied, scope
        self.iteration = 0  #: steps done; the next one is i = iteration + 1
        self.stopped = False  #: whether it has ended the fit, in the checkpoint
        self._satisfied = DelayedFlag()  # whether the last step had P <= tau for all constraints; in the checkpoint

    def start(self, trainer: Trainer, steering: Steering) -> None:
        if self.scope == "batch":
            self._sampler(trainer)  # say at once if it cannot work
        if isinstance(self.initial, list) and len(self.initial) != len(steering.penalty_coefficient):
            raise ValueError(
                f"PenaltyScheduler expects as many initial coefficients as the model has constraints, "
                f"{len(steering.names)}, got {len(self.initial)}; give one number for all, or one for each."
            )
        steering.stop_below.fill_(self.stop_below)
        self._write(steering)
        if self.stopped and self.when_satisfied == "stop":  # resumed from its last checkpoint
            trainer.should_stop = True

    def update(self, trainer: Trainer, steering: Steering, violations: Violations) -> None:
        satisfied = (violations.penalty <= self.stop_below).all()
        self.iteration += 1
        if self.scope == "batch":
            self._end_of_inner_step(trainer, bool(satisfied))
        elif self.when_satisfied == "stop":
            self._stop(trainer, self._satisfied.get())  # of the step before
            self._satisfied.set(satisfied)
        self._write(steering)

    def skip(self, trainer: Trainer, steering: Steering) -> None:
        if self.scope == "batch":  # the next batch comes: its inner loop begins anew
            self.iteration = 0
            self._write(steering)

    def _end_of_inner_step(self, trainer: Trainer, satisfied: bool) -> None:
        if satisfied or self.iteration >= self.max_iterations:
            self.iteration = 0
        else:
            self._sampler(trainer).repeat(self.micro_batches)
        self._stop(trainer, satisfied and self.when_satisfied == "stop")

    def _stop(self, trainer: Trainer, now: bool) -> None:
        if now:
            self.stopped = trainer.should_stop = True

    def _write(self, steering: Steering) -> None:
        growth = (self.growth_factor, self.iteration + 1, self.every_n_steps, self.max_iterations)
        for k, coefficient in enumerate(
            steering.penalty_coefficient
        ):  # filled on the device: a copy would make it wait
            initial = self.initial[k] if isinstance(self.initial, list) else self.initial
            coefficient.fill_(geometric_growth(initial, *growth))

    def _sampler(self, trainer: Any) -> Any:
        sampler = getattr(trainer.datamodule, "sampler", None)
        if not hasattr(sampler, "repeat"):
            raise ValueError(
                'PenaltyScheduler(scope="batch") repeats batches through the data module\'s KeyedSampler, but the fit '
                'has none; use a DiffusionDataModule, or scope="fit".'
            )
        return sampler

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "iteration": self.iteration,
            "satisfied": self._satisfied.get(),
            "stopped": self.stopped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.iteration, self.stopped = state_dict["iteration"], state_dict["stopped"]
        self._satisfied.restore(state_dict["satisfied"])
