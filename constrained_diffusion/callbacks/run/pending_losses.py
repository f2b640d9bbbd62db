"""What the steps since the last log step gave, which the host has not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class PendingStep(NamedTuple):
    """One batch's losses, as they lie on the device."""

    step: int  #: the optimiser step that the batch belongs to, counted from 1
    loss: Tensor
    terms: Mapping[str, Tensor]  #: by name; empty where the module does not tell
    row_sums: Tensor | None  #: `(B,)`, not finite where anything in the row is not
    rows: Tensor | None  #: `(B,)`, the rows' places in the training set

    def where(self) -> list[str]:
        """Return the terms that are not finite, and as one item the rows; waits for the device."""
        terms = [name for name, value in self.terms.items() if not torch.isfinite(value).all()]
        if self.row_sums is None or self.rows is None or bool(self.row_sums.isfinite().all()):
            return terms
        broken = self.rows[~self.row_sums.isfinite().to(self.rows.device)].tolist()
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        rows = (
            f"{len(broken)} of {len(self.row_sums)} rows, {', '.join(map(str, broken[:5]))}{more} of the training set"
        )
        return [*terms, rows]


def pending_step(step: int, outputs: Any, batch: Any) -> PendingStep:
    """Return what is needed of a training step's `outputs` to say later what went wrong."""
    rows = getattr(batch, "rows", None)
    return PendingStep(step, outputs["loss"], outputs.get("terms", {}), outputs.get("row_sums"), rows)


def first_broken(steps: list[PendingStep]) -> PendingStep | None:
    """Return the first step whose loss is not finite, if there is one; waits for the device, once."""
    if not steps:
        return None
    finite = torch.stack([torch.isfinite(step.loss).all() for step in steps]).tolist()
    return next((step for step, good in zip(steps, finite, strict=True) if not good), None)
