"""How often samples break each constraint, and any of them, by their own g: rates with bounds, over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from constrained_diffusion.objectives import Constraint
from constrained_diffusion.statistics import clopper_pearson_upper


def unique_names(constraints: Sequence[Constraint]) -> list[str]:
    """Return one name per constraint: its class, with its place behind it where two are of the same class."""
    names = [type(constraint).__name__ for constraint in constraints]
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]


def judges_samples(constraint: Constraint) -> bool:
    """Return whether it has a verdict on samples; a constraint on whole steps, or one that only steers, has none."""
    return constraint.has_verdict and not constraint.needs_step_record


class ConstraintRates(Metric):
    """The share of samples that break each constraint, and any of them, with one-sided 95 % upper bounds and n.

    A sample breaks a constraint where `Constraint.holds` says so: g > tolerance + margin, or g is NaN.

    Args:
        constraints: in the order of the fit; those that do not judge samples are left out.
    """

    is_differentiable = False
    full_state_update = False

    broken: Tensor
    broken_any: Tensor
    n: Tensor

    def __init__(self, constraints: Iterable[Constraint], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        given = list(constraints)
        pairs = [(name, c) for name, c in zip(unique_names(given), given, strict=True) if judges_samples(c)]
        self.names = [name for name, _ in pairs]
        # In a tuple, so that they are not modules of this one: they have another owner, who moves and stores them.
        self._constraints = tuple(constraint for _, constraint in pairs)
        self.add_state("broken", torch.zeros(len(pairs), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("broken_any", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, clean: Tensor) -> None:
        """Judge one batch of samples `(B, *shape)`, in the data's units, by every constraint."""
        verdicts = [~constraint.holds(clean) for constraint in self._constraints]
        columns = torch.stack(verdicts, 1) if verdicts else torch.zeros(len(clean), 0, dtype=torch.bool)
        columns = columns.to(self.n.device)
        self.broken = self.broken + columns.sum(0)  # not in place: states that inference mode made refuse that
        self.broken_any = self.broken_any + columns.any(1).sum()
        self.n = self.n + len(clean)

    def compute(self) -> dict[str, Any]:
        """Return {"own_violation_rate", "own_violation_upper_95", "n", "constraints"}, JSON-ready.

        "constraints" holds, by name, {"violation_rate", "violation_upper_95", "n"} of each.

        Raises:
            ValueError: no sample was judged.
        """
        n = int(self.n)
        if n == 0:
            raise ValueError("a violation rate needs at least one sample, got none; call update before compute.")
        whole = _rate(int(self.broken_any), n)
        each = {name: _rate(count, n) for name, count in zip(self.names, self.broken.tolist(), strict=True)}
        return {**{f"own_{key}": value for key, value in whole.items() if key != "n"}, "n": n, "constraints": each}


def _rate(count: int, n: int) -> dict[str, float | int]:
    return {"violation_rate": count / n, "violation_upper_95": clopper_pearson_upper(count, n), "n": n}
