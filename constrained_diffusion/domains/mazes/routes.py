"""Ways through a maze from cell to cell, and how much the shortest ones use each cell."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Literal, get_args

from constrained_diffusion.domains.mazes.layout import Cell, Maze

Solver = Literal["shortest", "depth_first"]


def route(maze: Maze, start: Cell, goal: Cell, solver: Solver = "shortest") -> list[Cell]:
    """Return the cells from `start` to `goal`, both included.

    Args:
        maze: the maze.
        start: a free cell.
        goal: another, or the same.
        solver: "shortest", or "depth_first": right, left, above, below go onto a stack, and the last one comes off
            first, which is how Minari's D4RL/pointmaze data was made, whatever its documentation says.

    Raises:
        ValueError: one of the cells is a wall, or an unknown solver.
    """
    if solver not in get_args(Solver):
        raise ValueError(f"solver must be one of {', '.join(get_args(Solver))}, got '{solver}'.")
    for name, at in (("start", start), ("goal", goal)):
        if not maze.is_free(at):
            raise ValueError(
                f"a route expects a {name} in a free cell, but row {at.row}, column {at.column} is a wall or outside; "
                f"the first free cell is row {maze.free[0].row}, column {maze.free[0].column}."
            )
    came_from: dict[Cell, Cell | None] = {start: None}
    todo = [start]
    while todo and goal not in came_from:
        at = todo.pop(0 if solver == "shortest" else -1)
        for following in maze.neighbours(at):
            if following not in came_from:
                came_from[following] = at
                todo.append(following)
    way = [goal]
    while (before := came_from[way[-1]]) is not None:
        way.append(before)
    return way[::-1]


def travel(maze: Maze) -> Counter[Cell]:
    """Return how many of the shortest routes between all pairs of free cells pass through each cell, ends left out."""
    passed: Counter[Cell] = Counter()
    for start, goal in permutations(maze.free, 2):
        passed.update(route(maze, start, goal)[1:-1])
    return passed
