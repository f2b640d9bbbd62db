"""What one training step measured, and of which rows."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import NamedTuple

from torch import Tensor

from constrained_diffusion.objectives import StepRecord


class Measured(NamedTuple):
    """What one step measured of the constraints; all of shape `(K,)`, averaged over ranks."""

    loss: Tensor  #: the penalty part of the loss, scalar, this rank's share, with gradient
    penalty: Tensor  #: P, raw
    slack: Tensor  #: S, mean of max_j(g_j - delta_j) over the rows below T_phi
    violation_rate: Tensor  #: share of the rows below T_phi with g > tolerance
    rows: Tensor  #: scalar, how many rows lie below T_phi, over all ranks
    each: Tensor  #: `(B',)`, what each row of this rank below T_phi adds to the sums, all constraints together


def below_threshold(record: StepRecord, rows: Tensor) -> StepRecord:
    """Return the record of `rows` `(B',)` alone, those below T_phi."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return replace(record, **{name: value[rows] for name, value in values.items() if value is not None})
