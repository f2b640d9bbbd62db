"""Continuity of a path: what the paper's failure case lacks, where a plan turns into dots (P figure 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.path_constraint import PathConstraint, Reduction, length
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.objectives import register


def steps(paths: Tensor) -> Tensor:
    """Return the length of each step of `paths` `(B, N, 2)`, `(B, N - 1)`.

    >>> steps(torch.tensor([[[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]]]))
    tensor([[5., 0.]])
    """
    return length(*paths.diff(dim=1).unbind(-1))


def accelerations(paths: Tensor) -> Tensor:
    """Return the length of each second difference, `(B, N - 2)`, in cells per frame squared."""
    return length(*paths.diff(n=2, dim=1).unbind(-1))


def turns(paths: Tensor, shortest: float) -> Tensor:
    """Return 1 - cos of the angle between consecutive steps, `(B, N - 2)`, in [0, 2]; 0 where one is too short.

    A shorter step than `shortest`, in cells, has no direction but noise, and its gradient grows like 1 / length.

    >>> turns(torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 2.0]]]), shortest=0.1)
    tensor([[1., 0.]])
    """
    lengths = steps(paths)
    moving = lengths > shortest
    direction = paths.diff(dim=1) / lengths.masked_fill(~moving, 1.0)[..., None]
    turn = 1 - (direction[:, 1:] * direction[:, :-1]).sum(-1)
    return torch.where(moving[:, 1:] & moving[:, :-1], turn, 0.0)


@register()
class Continuity(PathConstraint):
    """A plan stays one smooth path: g = value / limit - 1 for each step, acceleration and turn; negative means smooth.

    Give at least one limit; those of the data are the natural ones (`step_p999` of a planner's `statistics.json`). The
    standing tokens at both ends take part in steps alone: where the path leaves them at speed, it breaks no limit.

    Args:
        max_step: the longest step between consecutive points, in cells.
        max_acceleration: the largest second difference, in cells per frame squared.
        max_turn: the largest 1 - cos of the angle between consecutive steps, in (0, 2]; 1 is a right angle.
        shortest: steps up to this length, in cells, have no direction to turn from; the data's are about 0.03.
        reduction: "each" gives g of each place and limit, `(B, m)`; "worst" the largest, `(B,)`.
        tolerance: delta, as a share of the limits.
        has_verdict: whether a plan that breaks a limit counts as violating; see `Constraint`.

    Raises:
        ValueError: no limit, or one that is not positive.
    """

    def __init__(
        self,
        max_step: float | None = None,
        max_acceleration: float | None = None,
        max_turn: float | None = None,
        shortest: float = 1e-3,
        reduction: Reduction = "each",
        tolerance: float = 0.0,
        has_verdict: bool = True,
    ) -> None:
        super().__init__(reduction, tolerance)
        self.has_verdict = has_verdict
        limits = {"max_step": max_step, "max_acceleration": max_acceleration, "max_turn": max_turn}
        given = {name: value for name, value in limits.items() if value is not None}
        if not given:
            raise ValueError(f"Continuity expects at least one of {', '.join(limits)}; for example max_step: 0.06.")
        for name, value in {**given, "shortest": shortest}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"Continuity expects a positive {name}, got {value}; leave it out for no limit.")
        if max_turn is not None and max_turn > 2:
            raise ValueError(f"Continuity expects max_turn = 1 - cos in (0, 2], got {max_turn}; 1 is a right angle.")
        self.max_step, self.max_acceleration, self.max_turn = max_step, max_acceleration, max_turn
        self.shortest = shortest

    def along(self, clean: Tensor) -> Tensor:
        """Return value / limit - 1, `(B, m)`: first the steps, then accelerations, then turns, as far as limited."""
        paths, (tokens, frames) = points(clean), clean.shape[1:3]
        inner = paths[:, frames:-frames] if tokens > 2 else paths
        parts = []
        if self.max_step is not None:
            parts.append(steps(paths) / self.max_step)
        if self.max_acceleration is not None:
            parts.append(accelerations(inner) / self.max_acceleration)
        if self.max_turn is not None:
            parts.append(turns(inner, self.shortest) / self.max_turn)
        return torch.cat(parts, dim=1) - 1
