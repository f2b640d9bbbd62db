"""The reward of a plan that ends where it shall."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.objectives import Reward, register


@register()
class NearGoal(Reward):
    """Minus the distance between a plan's last point and the goal, in cells, values <= 0.

    Args:
        goal: [x, y].
        maze: a name or the rows of a map.

    Raises:
        ValueError: the goal lies in a wall.
    """

    goal: Tensor

    def __init__(self, goal: Sequence[float], maze: str | list[str] = "medium") -> None:
        super().__init__()
        Maze.of(maze).check_free(goal, "goal")
        self.register_buffer("goal", torch.tensor(goal, dtype=torch.float32))

    def forward(self, clean: Tensor) -> Tensor:
        """Return the reward of plans `(B, L, S, C)`, shape `(B,)`."""
        apart = points(clean)[:, -1] - self.goal.to(clean)
        # With a little under the root: at the goal itself the norm has no gradient.
        return -(apart.square().sum(-1) + 1e-12).sqrt()
