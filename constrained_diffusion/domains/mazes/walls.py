"""The walls of a maze: a constraint of the kind of the forbidden zones, for planners that run through them."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.layout import BALL, Maze
from constrained_diffusion.domains.mazes.path_constraint import PathConstraint, Reduction, length
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.objectives import register

CHUNK = 1 << 12  #: points that are compared with all boxes at once: so few stay in a processor's cache


def room(path: Tensor, walls: Tensor, free: Tensor) -> Tensor:
    """Return the signed distance of points `(..., 2)` to the walls, in cells: negative inside one.

    `maze.layout.clearance`, but all that lies outside the map is wall, so that the gradient points back inside; and
    only the nearest box of each point takes part in the gradient, which spares the memory of the others.

    Args:
        path: in cells.
        walls: `(n, 4)`, the boxes of the wall cells; see `Maze.boxes`.
        free: `(m, 4)`, those of the free cells.
    """
    inside_wall = nearest_distance(path, free)
    return torch.where(inside_wall > 0, -inside_wall, nearest_distance(path, walls))


def nearest_distance(path: Tensor, boxes: Tensor) -> Tensor:
    """Return the distance of points `(..., 2)` to the nearest of `boxes` `(n, 4)`, 0 inside one; `path.shape[:-1]`."""
    flat = path.reshape(-1, 2)
    with torch.no_grad():
        gaps = (_gaps(part[:, None], boxes) for part in flat.split(CHUNK))
        nearest = torch.cat([x.square_().add_(y.square_()).argmin(1) for x, y in gaps])
    return length(*_gaps(flat, boxes[nearest])).reshape(path.shape[:-1])


def _gaps(path: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far points `(..., 2)` lie beside boxes `(..., 4)` along x and along y, 0 where they do not."""
    x, y = (
        (boxes[..., axis] - path[..., axis]).clamp(min=0) + (path[..., axis] - boxes[..., axis + 2]).clamp(min=0)
        for axis in (0, 1)
    )
    return x, y


@register()
class Walls(PathConstraint):
    """No point of a plan comes too near to a wall: g = distance - clearance, in cells; negative means free.

    Args:
        maze: "open", "umaze", "medium", "large", or the rows of a map; see `Maze.of`.
        distance: what points keep off the walls, in cells; the ball's radius, so that it can follow the plan.
        reduction: "each" gives g of each point, `(B, m)`; "worst" the largest, `(B,)`.
        tolerance: delta, in cells.
        has_verdict: whether a plan that comes too near counts as violating; see `Constraint`.

    Raises:
        ValueError: no such maze, an unknown reduction, or a distance that leaves nothing of a corridor.
    """

    walls: Tensor
    free: Tensor

    def __init__(
        self,
        maze: str | list[str] = "medium",
        distance: float = BALL,
        reduction: Reduction = "each",
        tolerance: float = 0.0,
        has_verdict: bool = True,
    ) -> None:
        super().__init__(reduction, tolerance)
        self.has_verdict = has_verdict
        if not 0 <= distance < 0.5:
            raise ValueError(
                f"Walls expects a distance in [0, 0.5), in cells, got {distance}; a corridor is 1 wide, and the "
                f"radius of the ball, {BALL}, is the usual one."
            )
        self.maze, self.distance = Maze.of(maze), distance
        self.register_buffer("walls", self.maze.boxes("#"))
        self.register_buffer("free", self.maze.boxes("O"))

    def along(self, clean: Tensor) -> Tensor:
        """Return g of each point, `(B, N)`, in cells, N = L S."""
        return self.distance - room(points(clean), self.walls.to(clean), self.free.to(clean))
