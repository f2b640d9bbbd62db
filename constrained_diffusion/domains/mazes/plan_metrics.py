"""Geometry of judging plans: zones, walls and goals; paths are `(n, N, 2)`, in cells, measured in float64.

| what | definition |
|---|---|
| zone | an open disc of radius R around a centre: its rim is allowed |
| depth | (R - d)+ with the distance d of a point to the centre, in cells |
| barrier | b = (d / R)^2 - 1, at least 0 outside (SafeDiffuser's, arXiv 2306.00148) |
| wall | the whole square of a wall cell, and everything outside the map; its side is allowed |
| goal reached | within 0.5 cells of it |

A point counts as inside from a depth of 1e-6 cells on: that much, the float32 in which samples come may be off.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.layout import NAMED, Maze
from constrained_diffusion.domains.mazes.segments import distance_to_segments

ROUNDING = 1e-6  #: cells
GOAL_RADIUS = 0.5  #: cells


class Zones(NamedTuple):
    """Forbidden discs."""

    centres: Tensor  #: `(Z, 2)`, in cells
    radii: Tensor  #: `(Z,)`, in cells


class Scale(NamedTuple):
    """What D4RL normalises the reward of a maze by."""

    frames: int  #: of an episode
    lowest: float  #: the mean reward of a random policy
    highest: float  #: that of the controller that made the data


D4RL = {
    "umaze": Scale(300, 23.85, 161.86),
    "medium": Scale(600, 13.13, 277.39),
    "large": Scale(800, 6.7, 273.99),
}  #: of maze2d-umaze-v1, maze2d-medium-v1 and maze2d-large-v1


def zone_distances(paths: Tensor, zones: Zones) -> Tensor:
    """Return d of each point to each centre, `(n, N, Z)`, in cells."""
    return (paths.double()[..., None, :] - zones.centres.double()).square().sum(-1).sqrt()


def points_in_zones(paths: Tensor, zones: Zones) -> Tensor:
    """Return whether each point lies inside a zone, `(n, N)`, bool."""
    return (zone_distances(paths, zones) < zones.radii.double() - ROUNDING).any(-1)


def segments_in_zones(paths: Tensor, zones: Zones) -> Tensor:
    """Return whether the straight line between each two consecutive points passes through a zone, `(n, N - 1)`."""
    paths = paths.double()
    starts, ends = paths[:, :-1, None], paths[:, 1:, None]
    return (distance_to_segments(zones.centres.double(), starts, ends) < zones.radii.double() - ROUNDING).any(-1)


def depth(paths: Tensor, zones: Zones) -> Tensor:
    """Return how deep the deepest point of each path lies in a zone, max (R - d)+, `(n,)`, in cells."""
    return (zones.radii.double() - zone_distances(paths, zones)).clamp(min=0).amax((1, 2))


def barrier(paths: Tensor, zones: Zones) -> Tensor:
    """Return the least (d / R)^2 - 1 over the points of each path and the zones, `(n,)`; negative means inside."""
    return ((zone_distances(paths, zones) / zones.radii.double()).square() - 1).amin((1, 2))


def points_in_walls(paths: Tensor, maze: Maze) -> Tensor:
    """Return whether each point lies inside a wall or outside the map, `(n, N)`, bool."""
    return _in_wall(paths.double(), maze)


def segments_in_walls(paths: Tensor, maze: Maze) -> Tensor:
    """Return whether the line between each two consecutive points passes through a wall, `(n, N - 1)`, bool.

    Exact: a segment is cut where it crosses the lines between cells, so that each piece lies in a single cell, and its
    middle says whether that one is a wall.
    """
    starts, ends = (part.reshape(-1, 2) for part in (paths.double()[:, :-1], paths.double()[:, 1:]))
    crossing = (_cells(starts, maze) != _cells(ends, maze)).any(-1) | ~_in_free_cell(starts, maze)
    found = crossing.clone()
    a, b = starts[crossing], ends[crossing]
    cuts = []
    for axis, length in enumerate(maze.size):
        lines = torch.arange(length + 1, dtype=a.dtype, device=a.device) - length / 2
        along = (b - a)[:, axis, None]
        cuts.append((lines - a[:, axis, None]) / along.masked_fill(along == 0, torch.inf))
    ends_of_pieces = torch.cat([*cuts, a.new_tensor([[0.0, 1.0]]).expand(len(a), 2)], dim=1).clamp(0, 1).sort(1).values
    middles = (ends_of_pieces[:, 1:] + ends_of_pieces[:, :-1]) / 2
    found[crossing] = _in_wall(a[:, None] + middles[..., None] * (b - a)[:, None], maze).any(1)
    return found.reshape(paths.shape[0], paths.shape[1] - 1)


def goal_distances(paths: Tensor, goal: Tensor) -> Tensor:
    """Return the distance of each point to `goal` `(2,)` or `(n, 2)`, `(n, N)`, in cells."""
    return (paths.double() - goal.double().reshape(-1, 1, 2)).square().sum(-1).sqrt()


def first_reach(paths: Tensor, goal: Tensor) -> Tensor:
    """Return the first frame within 0.5 cells of the goal, counted from 0, `(n,)`, float64; NaN where there is none."""
    near = goal_distances(paths, goal) <= GOAL_RADIUS
    first: Tensor = near.int().argmax(1).double()
    return first.masked_fill(~near.any(1), torch.nan)


def d4rl_scale(maze: Maze) -> Scale | None:
    """Return the constants of D4RL for one of its three mazes, None for any other."""
    return next((scale for name, scale in D4RL.items() if Maze.of(NAMED[name]) == maze), None)


def d4rl_score(paths: Tensor, goal: Tensor, scale: Scale) -> Tensor:
    """Return D4RL's normalised score of executed paths, `(n,)`: 0 like a random policy, 100 like the data's controller.

    The reward is the number of an episode's frames that are within 0.5 cells of the goal. The constants belong to
    random starts and D4RL's own goal (row 6, column 6 of the medium maze), so scores of other goals compare only among
    themselves.

    Raises:
        ValueError: the paths are shorter than an episode.
    """
    if paths.shape[1] < scale.frames:
        raise ValueError(
            f"a D4RL score counts {scale.frames} frames, but the paths have {paths.shape[1]}; execute that many steps."
        )
    reward = (goal_distances(paths[:, : scale.frames], goal) <= GOAL_RADIUS).double().sum(1)
    return 100 * (reward - scale.lowest) / (scale.highest - scale.lowest)


def _cells(points: Tensor, maze: Maze) -> Tensor:
    """Return row and column of points `(..., 2)`, `(..., 2)`, long; a ring of cells around the map is all outside."""
    width, height = maze.size
    place = torch.stack([height / 2 - points[..., 1], points[..., 0] + width / 2], dim=-1)
    return torch.minimum(place.floor().clamp(min=-1), place.new_tensor([height, width])).long()


def _in_free_cell(points: Tensor, maze: Maze) -> Tensor:
    """Return whether points `(..., 2)` lie in a free cell, `(...)`; one on the side of two cells is in either."""
    width, height = maze.size
    free = torch.zeros(height + 2, width + 2, dtype=torch.bool, device=points.device)
    for at in maze.free:
        free[at.row + 1, at.column + 1] = True
    rows, columns = _cells(points, maze).unbind(-1)
    return free[rows + 1, columns + 1]


def _in_wall(points: Tensor, maze: Maze) -> Tensor:
    """Return whether points `(..., 2)` lie in a wall or outside the map, by more than rounding, `(...)`.

    The small square around such a point has none of its corners in a free cell.
    """
    corners = ROUNDING * points.new_tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    return ~_in_free_cell(points[..., None, :] + corners, maze).any(-1)
