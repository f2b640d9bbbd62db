"""Forbidden zones: discs that no plan may enter (P section 4.2 and eq. 17).

| paper | code | shape |
|---|---|---|
| P, the trajectory points | `paths` | `(B, N, 2)`, in cells |
| Q, the forbidden points | `centres` | `(Z, 2)`, in cells |
| R | `radius` | |
| d | `point_distances`, `segment_distances` | `(B, N, Z)`, `(B, N - 1, Z)` |
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.path_constraint import PathConstraint, Reduction, length
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.domains.mazes.zones import check_room, draw_zones
from constrained_diffusion.objectives import register
from constrained_diffusion.runtime import assets, untrusted

PLANNER = "maze2d_planner"
Form = Literal["points", "segments"]


def point_distances(paths: Tensor, centres: Tensor) -> Tensor:
    """Return the distance of each point of `paths` `(B, N, 2)` to each of `centres` `(Z, 2)`, `(B, N, Z)`.

    >>> point_distances(torch.tensor([[[3.0, 0.0], [0.0, 0.0]]]), torch.tensor([[0.0, 4.0]]))
    tensor([[[5.],
             [4.]]])
    """
    return length(paths[..., 0, None] - centres[:, 0], paths[..., 1, None] - centres[:, 1])


def segment_distances(paths: Tensor, centres: Tensor) -> Tensor:
    """Return the distance of the straight line between each two consecutive points to each centre, `(B, N - 1, Z)`.

    The gradient is exact where it exists, the second derivative is not: the place t in [0, 1] that is nearest is held
    fixed, because there the distance does not change with t, or t is held by an end. That spares memory, and a division
    by the squared length, which is zero where a plan stands; such a segment is the point that it starts at.

    >>> segment_distances(torch.tensor([[[-1.0, 1.0], [3.0, 1.0]]]), torch.tensor([[0.0, 0.0]]))
    tensor([[[1.]]])
    """
    x, y = paths[:, :-1, 0, None], paths[:, :-1, 1, None]
    along_x, along_y = paths[:, 1:, 0, None] - x, paths[:, 1:, 1, None] - y
    with torch.no_grad():
        squared = along_x.square() + along_y.square()
        t = (centres[:, 0] - x) * along_x + (centres[:, 1] - y) * along_y
        t = (t / squared.masked_fill(squared == 0, 1.0)).clamp(0, 1)
    return length(x + t * along_x - centres[:, 0], y + t * along_y - centres[:, 1])


def tracking_margin() -> float:
    """Return the p95 of the distance between the zoo planner's plans and their executions, in cells."""
    return float(untrusted.read_json(assets.path(PLANNER) / "statistics.json")["tracking_p95"])


@register()
class ForbiddenZones(PathConstraint):
    """No plan enters a zone: g = R + margin - d, in cells (P eq. 17 without its inner ReLU); negative means outside.

    Zones that leave no room for a plan are refused at once, by `maze.zones.check_room` with the margin included.

    Args:
        maze: "open", "umaze", "medium", "large", or the rows of a map; see `Maze.of`.
        centres: [x, y] of each zone, in cells from the middle of the map; None draws them.
        radius: R of every zone, in cells; the paper's is 0.3.
        margin: added to the radius for the error of whoever follows the plan, in cells. None takes the p95 of the
            executed path's distance to its plan, from the statistics of the zoo's planner; `PlanEvaluation` measures
            it as `tracking_p95`. Judges leave it out.
        count: how many zones `maze.zones.draw_zones` draws, in well-travelled corridors, where no centres are given.
        seed: of that draw.
        form: what keeps off the zones: "points", as in the paper, or the "segments" between consecutive points, whose
            ends are the points; a plan that jumps across a zone obeys the first form and not the second.
        reduction: "each" gives g of each point or segment and zone, `(B, m)`; "worst" the largest, `(B,)`.
        tolerance: delta of eq. 14, in cells.

    Raises:
        ValueError: infeasible zones, neither or both of centres and count, or a setting that is out of range.
    """

    centres: Tensor

    def __init__(
        self,
        maze: str | list[str] = "medium",
        centres: list[list[float]] | None = None,
        radius: float = 0.3,
        margin: float | None = None,
        count: int | None = None,
        seed: int = 0,
        form: Form = "segments",
        reduction: Reduction = "each",
        tolerance: float = 0.0,
    ) -> None:
        super().__init__(reduction, tolerance)
        margin = tracking_margin() if margin is None else margin
        if not 0 < radius < float("inf") or not 0 <= margin < float("inf"):
            raise ValueError(
                f"ForbiddenZones expects a positive radius and a margin of 0 or more, in cells, got {radius} and "
                f"{margin}; the paper's radius is 0.3."
            )
        if form not in get_args(Form):
            raise ValueError(f"ForbiddenZones expects a form of {' or '.join(get_args(Form))}, got '{form}'.")
        if (centres is None) == (count is None):
            raise ValueError(
                f"ForbiddenZones expects either centres or a count of zones to draw, got {centres} and {count}; give "
                "`centres: [[x, y], ..]`, in cells, or `count: 2` and a seed."
            )
        self.maze, self.radius, self.margin, self.form = Maze.of(maze), radius, margin, form
        places = draw_zones(self.maze, count or 0, radius, seed) if centres is None else centres
        check_room(self.maze, places, radius + margin)
        self.register_buffer("centres", torch.tensor(places, dtype=torch.float32))

    def extra_repr(self) -> str:
        return (
            f"centres={self.centres.tolist()}, radius={self.radius}, margin={self.margin}, form={self.form}, "
            f"reduction={self.reduction}, tolerance={self.tolerance}"
        )

    def along(self, clean: Tensor) -> Tensor:
        """Return g of each point or segment and zone, `(B, N, Z)` or `(B, N - 1, Z)`, in cells, N = L S."""
        distances = point_distances if self.form == "points" else segment_distances
        return self.radius + self.margin - distances(points(clean), self.centres.to(clean))
