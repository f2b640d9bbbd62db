"""`Steering`: the constraints of a fit, and the coefficients that controllers write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from constrained_diffusion.constraint_rates import judges_samples, unique_names
from constrained_diffusion.fine_tuning.penalty import quadratic_penalty, violation
from constrained_diffusion.objectives import Constraint, StepRecord, check_built, check_objective, measure_constraint
from constrained_diffusion.runtime.precision import Float32ModuleList, keep_float32, to_float32

COEFFICIENTS = ("penalty_coefficient", "stop_below", "multiplier", "augmentation")


class RowViolations(NamedTuple):
    """How each row of a step stands with one constraint."""

    squared: Tensor  #: `(B,)`, sum_j relu(g_j - delta_j)^2, with gradient
    excess: Tensor  #: `(B,)`, max_j(g_j - delta_j), with gradient
    violating: Tensor  #: `(B,)`, bool: some g_j > delta_j


class Steering(nn.Module):
    """Constraints, and what multiplies each: C, tau, lambda and c. `PenaltyLoss` reads them, controllers write them.

    The coefficients are buffers in single precision, whatever the networks have: half precision would round small
    growth of a multiplier away.

    Args:
        constraints: K of them, perhaps none; each has its own tolerance.
    """

    penalty_coefficient: Tensor  #: buffer `(K,)`, C, multiplies the penalty of the next step
    stop_below: Tensor  #: buffer `(K,)`, tau: the penalty is released in a step whose P is not above it
    multiplier: Tensor  #: buffer `(K,)`, lambda, multiplies the slack of the next step
    augmentation: Tensor  #: buffer `(K,)`, c, the coefficient of the augmented Lagrangian's square

    def __init__(self, constraints: Sequence[Constraint] = ()) -> None:
        super().__init__()
        for constraint in constraints:
            check_built(constraint)
        self.constraints = Float32ModuleList(constraints)
        self.names = unique_names(constraints)
        self.in_expectation = [constraint.in_expectation for constraint in constraints]  #: which limit a mean
        self.has_verdict = [constraint.has_verdict for constraint in constraints]  #: which say what is feasible
        self.needs_frozen = any(constraint.needs_step_record for constraint in constraints)
        for name in COEFFICIENTS:
            self.register_buffer(name, torch.full((len(constraints),), float(name == "penalty_coefficient")))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        coefficients = {name: getattr(self, name) for name in COEFFICIENTS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in coefficients.items():
            setattr(self, name, keep_float32(fn)(value))
        return self

    def measure(self, constraint: Any, record: StepRecord) -> RowViolations:
        """Return how the rows of `record` stand with `constraint`, one of ours; no rows give no values."""
        clean, tolerance = to_float32(record.predicted_clean), constraint.tolerance
        if not len(clean):  # one rank's part of a batch may be above T_phi; not every constraint takes an empty batch
            return RowViolations(clean.new_zeros(0), clean.new_zeros(0), clean.new_zeros(0, dtype=torch.bool))
        values = measure_constraint(constraint, record if constraint.needs_step_record else clean)
        excess, violating = (values - tolerance).amax(1), (violation(values, tolerance) > 0).any(1)
        return RowViolations(quadratic_penalty(values, tolerance).sum(1), excess, violating)

    @torch.no_grad()
    def feasible(self, clean: Tensor) -> Tensor:
        """Return 1.0 where `clean` `(B, *shape)`, in data units, satisfies every constraint, else 0.0; shape `(B,)`.

        Constraints on the whole step, and those without a verdict, have no say. A sample whose g is NaN does not
        satisfy it.
        """
        result = torch.ones(len(clean), device=clean.device)
        for constraint in self.constraints:
            if judges_samples(constraint):  # type: ignore[arg-type]
                result = result * constraint.holds(clean)  # type: ignore[operator]
        return result

    def check(self, stage: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError where a constraint cannot take samples of `shape`, or a fit lacks its gradient.

        A constraint is tried on a few samples; what it returns is checked as in `check_objective`.
        """
        for constraint in self.constraints:
            constraint.check_data(shape)  # type: ignore[operator]
            if stage == "fit" and not constraint.differentiable:
                raise ValueError(
                    f"fine-tuning needs the gradient of its constraints, but {type(constraint).__name__} is not "
                    "differentiable; optimise the noise instead (`lightning predict` with noise optimisation takes "
                    "black-box objectives), or give a differentiable surrogate."
                )
            check_objective(constraint, shape)  # type: ignore[arg-type]
