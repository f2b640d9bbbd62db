"""Forbidden zones in a maze: drawn from a seed, and tested for the room that they leave.

A zone is an open disc. Room is tested on a grid of positions of the ball, 0.05 cells apart, which keep the ball's
radius off the walls and lie in no zone; two neighbours of the grid, along x or along y, are connected. A way that is
narrower than one step of the grid counts as closed.

What must stay is each passage, not only each place: in a maze with a loop a closed corridor cuts off no cell, yet a
plan that led through it can only jump. So the cells around a zone must stay connected among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.layout import BALL, Cell, Maze, clearance, distance_to_boxes
from constrained_diffusion.domains.mazes.routes import travel
from constrained_diffusion.runtime.randomness import keyed_generator

PER_CELL = 20  #: positions of the grid along the side of a cell
ROUNDING = 1e-9  #: cells; as near as that, a position counts as at the rim of a zone or as touching a wall
ATTEMPTS = 100  #: draws of zones before there is said to be no room for them
STREAM = 5  #: of random numbers


def draw_zones(
    maze: Maze, count: int, radius: float, seed: int, offset: tuple[float, float] = (0.2, 0.3)
) -> list[list[float]]:
    """Draw the centres of zones in well-travelled corridors, one in each of `count` cells.

    A corridor is a free cell with exactly two free neighbours, on opposite sides; well-travelled is the upper half of
    them by `routes.travel`. A centre lies off the corridor's axis, to either side, and up to 0.25 along it. Zones that
    leave no room together (in neighbouring corridors) are drawn again, so that the result passes `check_room`.

    Args:
        maze: the maze.
        count: how many, at least 1.
        radius: of each zone, in cells.
        seed: the same one draws the same zones.
        offset: the least and the largest distance off the axis, in cells.

    Returns:
        [x, y] of each centre, in cells, to four decimals.

    Raises:
        ValueError: fewer such corridors than zones, no draw with enough room, or a count, radius or offset that is no
            such number.
    """
    low, high = offset
    if count < 1 or not 0 < radius < float("inf") or not 0 <= low <= high <= 0.5:
        raise ValueError(
            "zones expect a count of at least 1, a positive radius and an offset of two distances in [0, 0.5], the "
            f"smaller one first, got count {count}, radius {radius} and offset {tuple(offset)}; for example 2, 0.3 and "
            "(0.2, 0.3)."
        )
    corridors = well_travelled(maze)
    if len(corridors) < count:
        raise ValueError(
            f"{count} zones expect as many well-travelled corridors, but this maze has {len(corridors)}; draw fewer, "
            "choose another maze ('large' has 12), or give the centres yourself."
        )
    problem: ValueError | None = None
    for attempt in range(ATTEMPTS):
        generator = keyed_generator(STREAM, seed, attempt)
        chosen = torch.randperm(len(corridors), generator=generator)[:count].tolist()
        numbers = torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist()
        centres = []
        for index, (distance, side, along) in zip(chosen, numbers, strict=True):
            x, y = maze.centre(corridors[index])
            off, shift = (low + distance * (high - low)) * (1 if side < 0.5 else -1), 0.5 * along - 0.25
            dx, dy = (shift, off) if _axis(maze, corridors[index]) == "x" else (off, shift)
            centres.append([round(x + dx, 4), round(y + dy, 4)])
        try:
            check_room(maze, centres, radius)
        except ValueError as error:
            problem = error
        else:
            return centres
    raise ValueError(
        f"none of {ATTEMPTS} draws of {count} zones of radius {radius} leaves room (the last one: {problem}) Take a "
        "smaller radius, fewer zones or a larger offset."
    )


@lru_cache(maxsize=8)
def well_travelled(maze: Maze) -> tuple[Cell, ...]:
    """Return the upper half of a maze's corridors by travel, rounded up, most travelled first."""
    corridors, passed = [at for at in maze.free if _axis(maze, at) is not None], travel(maze)
    return tuple(sorted(corridors, key=lambda at: (-passed[at], at))[: (len(corridors) + 1) // 2])


def check_room(maze: Maze, centres: Sequence[Sequence[float]], radius: float) -> None:
    """Raise ValueError where plans cannot obey the zones; each zone alone is tested first, then all together.

    Args:
        maze: the maze.
        centres: [x, y] of each zone, in cells from the middle of the map.
        radius: of every zone, in cells, a margin for tracking errors included.

    Raises:
        ValueError: a zone lies outside the maze or wholly inside walls, fills a cell, or closes a passage.
    """
    if not 0 < radius < float("inf") or not len(centres) or any(len(centre) != 2 for centre in centres):
        raise ValueError(
            "zones expect at least one centre [x, y] and a positive radius, in cells, got "
            f"{[list(centre) for centre in centres]} and {radius}; for example [[0.5, 0.25]] and 0.3."
        )
    names = [f"zone {k} at [{float(x):g}, {float(y):g}]" for k, (x, y) in enumerate(centres)]
    touched = [_touched(maze, name, centre, radius) for name, centre in zip(names, centres, strict=True)]
    grid, ball = _ball_positions(maze)
    discs = [
        (grid - torch.tensor([*map(float, at)], dtype=grid.dtype)).square().sum(-1) < (radius - ROUNDING) ** 2
        for at in centres
    ]
    for name, disc, cells in zip(names, discs, touched, strict=True):
        for group in _around(maze, cells):
            _must_connect(maze, ball & ~disc, group, [name], radius)
    if len(discs) > 1:
        room = ball & ~torch.stack(discs).any(0)
        for group in [group for cells in touched for group in _around(maze, cells)] + [maze.free]:
            present = [name for name, cells in zip(names, touched, strict=True) if set(cells) & set(group)]
            _must_connect(maze, room, group, present, radius)


def _axis(maze: Maze, at: Cell) -> str | None:
    """Return the axis, "x" or "y", along which a cell is a corridor; None where it is none."""
    match maze.neighbours(at):
        case [one, other] if one.row == other.row:
            return "x"
        case [one, other] if one.column == other.column:
            return "y"
    return None


@lru_cache(maxsize=8)
def _ball_positions(maze: Maze) -> tuple[Tensor, Tensor]:
    """Return the grid `(20 H, 20 W, 2)`, in cells, and where the ball can be on it, bool; rows run downwards."""
    width, height = maze.size
    x = torch.arange(PER_CELL * width, dtype=torch.float64) / PER_CELL - width / 2
    y = height / 2 - torch.arange(PER_CELL * height, dtype=torch.float64) / PER_CELL
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    walls, free = (maze.boxes(kind).double() for kind in "#O")
    return grid, torch.stack([clearance(row, walls, free) >= BALL - ROUNDING for row in grid])


def _touched(maze: Maze, name: str, centre: Sequence[float], radius: float) -> list[Cell]:
    """Return the free cells that a disc reaches into; raise ValueError where there are none."""
    (width, height), (x, y) = maze.size, map(float, centre)
    if not (abs(x) <= width / 2 and abs(y) <= height / 2):
        raise ValueError(
            f"{name} is infeasible: it lies outside the maze, where x is in [{-width / 2}, {width / 2}] and y in "
            f"[{-height / 2}, {height / 2}]; take another centre, in cells from the middle of the map (that of row r, "
            f"column c is at x = c + 0.5 - {width / 2}, y = {height / 2} - r - 0.5)."
        )
    at = torch.tensor([x, y], dtype=torch.float64)
    reached = [float(distance_to_boxes(at, box[None])) < radius for box in maze.boxes("O").double()]
    if not any(reached):
        raise ValueError(
            f"{name} is infeasible: with radius {radius:g} it lies wholly inside walls and forbids nothing; "
            f"take another centre, for example one near {list(_nearest_free(maze, x, y))}."
        )
    return [cell for cell, hit in zip(maze.free, reached, strict=True) if hit]


def _nearest_free(maze: Maze, x: float, y: float) -> tuple[float, float]:
    return min((maze.centre(at) for at in maze.free), key=lambda at: (at[0] - x) ** 2 + (at[1] - y) ** 2)


def _around(maze: Maze, touched: list[Cell]) -> list[list[Cell]]:
    """Return the free cells within one cell of the touched ones, in groups that are connected without leaving them."""
    left = {at for at in maze.free if any(max(abs(at.row - z.row), abs(at.column - z.column)) <= 1 for z in touched)}
    groups = []
    for start in touched:
        if start in left:
            group, todo = [], [start]
            left.remove(start)
            while todo:
                group.append(todo.pop())
                todo += (new := [at for at in maze.neighbours(group[-1]) if at in left])
                left -= set(new)
            groups.append(sorted(group))
    return groups


def _must_connect(maze: Maze, room: Tensor, cells: list[Cell], names: list[str], radius: float) -> None:
    """Raise ValueError naming the zones unless one connected part of `room`, within the cells, visits them all."""
    missed = _cut_off(maze, room, cells)
    if missed:
        who, verb = " and ".join(names), "is" if len(names) == 1 else "are together"
        where = f"row {missed[0].row}, column {missed[0].column}"
        more = f" and {len(missed) - 1} more of the cells around" if len(missed) > 1 else ""
        raise ValueError(
            f"{who} {verb} infeasible: radius {radius:g} leaves a ball of radius {BALL} no way into {where}{more}; "
            "take a smaller radius (or margin), or another centre, further off the corridor's axis."
        )


def _cut_off(maze: Maze, room: Tensor, cells: list[Cell]) -> list[Cell]:
    """Return the cells that are not visited by the connected part of `room`, within them, that visits most of them."""
    width, height = maze.size
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[tuple(torch.tensor(cells).T)] = True
    room = room & inside.repeat_interleave(PER_CELL, 0).repeat_interleave(PER_CELL, 1)
    best, left = cells, room.clone()
    while left.any() and best:
        seed = torch.zeros_like(room)
        seed.view(-1)[left.view(-1).int().argmax()] = True
        part = _flood(seed, room)
        left &= ~part
        visited = part.view(height, PER_CELL, width, PER_CELL).any(3).any(1)
        missed = [at for at in cells if not visited[at]]
        best = min(best, missed, key=len)
    return best


def _flood(reached: Tensor, room: Tensor) -> Tensor:
    """Return all of `room` `(h, w)` that is connected with `reached`: runs are filled along x and y in turn."""
    runs = [(~room).cumsum(dim) for dim in (0, 1)]  # one number for each unbroken run of a line
    while True:
        before = reached
        for dim, run in enumerate(runs):
            slots = [side + (d == dim) for d, side in enumerate(room.shape)]
            hit = torch.zeros(slots, dtype=torch.uint8).scatter_reduce(dim, run, reached.byte(), "amax")
            reached = hit.gather(dim, run).bool() & room
        if torch.equal(reached, before):
            return reached
