"""The geometry of a maze in the coordinates of gymnasium-robotics: cells of side 1, the map's centre at the origin.

| what | where |
|---|---|
| centre of cell (row, column) of H rows and W columns | x = column + 0.5 - W / 2, y = H / 2 - row - 0.5 |
| a wall cell | the whole square around that centre: the body that moves is centred on its own position |
| the ball | radius 0.1, so that its position keeps 0.1 off every wall |

(The first D4RL had the body 0.2 off its coordinates, and walls that seem to lie at [w - 0.7, w + 0.3]; its data needs
a shift before it is read here. Minari's D4RL/pointmaze data has no such offset.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BALL = 0.1  #: radius of the ball, in cells
NAMED = {
    "open": "####### #OOOOO# #OOOOO# #OOOOO# #######",
    "umaze": "##### #OOO# ###O# #OOO# #####",
    "medium": "######## #OO##OO# #OO#OOO# ##OOO### #OO#OOO# #O#OO#O# #OOO#OO# ########",
    "large": (
        "############ #OOOO#OOOOO# #O##O#O#O#O# #OOOOOO#OOO# #O####O###O# #OO#O#OOOOO# ##O#O#O#O### #OO#OOO#OOO# "
        "############"
    ),
}  #: the four maps of D4RL's point mazes


class Cell(NamedTuple):
    """A place in the map, counted from its upper left corner."""

    row: int
    column: int


@dataclass(frozen=True)
class Maze:
    """A closed maze.

    Args:
        rows: the map, one string of "#" (wall) and "O" (free) per row.

    Raises:
        ValueError: rows of several lengths, other characters, no free cell, a border that is not closed, or parts that
            are not connected.

    Example:
        >>> maze = Maze.of("umaze")
        >>> len(maze.free), maze.centre(Cell(1, 1))
        (7, (-1.0, 1.0))
    """

    rows: tuple[str, ...]

    def __post_init__(self) -> None:
        rows = self.rows
        if len(rows) < 3 or len({len(row) for row in rows}) != 1 or set("".join(rows)) - set("#O"):
            raise ValueError(
                "a maze expects at least three rows of one length made of '#' (wall) and 'O' (free), for example "
                f"'##### #OOO# #####'; got {' '.join(rows)[:120]!r}. The named ones are {', '.join(NAMED)}."
            )
        border = [Cell(r, c) for r in range(len(rows)) for c in range(len(rows[0]))]
        border = [at for at in border if at.row in (0, len(rows) - 1) or at.column in (0, len(rows[0]) - 1)]
        if gap := next((at for at in border if rows[at.row][at.column] != "#"), None):
            raise ValueError(
                f"a maze expects walls all around, but row {gap.row}, column {gap.column} of its border is free; put "
                "a '#' there."
            )
        if not self.free:
            raise ValueError("a maze expects at least one free cell 'O', got walls alone.")
        found, todo = {self.free[0]}, [self.free[0]]
        while todo:
            todo += (new := [at for at in self.neighbours(todo.pop()) if at not in found])
            found |= set(new)
        if left := next((at for at in self.free if at not in found), None):
            raise ValueError(
                f"a maze expects that all free cells are connected, but row {left.row}, column {left.column} cannot be "
                f"reached from row {self.free[0].row}, column {self.free[0].column}; open a wall between them."
            )

    @classmethod
    def of(cls, description: str | Sequence[str] | Maze) -> Maze:
        """Return the maze of that name, or of rows given as a list or as one string with blanks between them."""
        if isinstance(description, Maze):
            return description
        if isinstance(description, str):
            text = NAMED.get(description, description)
            description = text.replace("\\", " ").split()
        return cls(tuple(description))

    @property
    def free(self) -> list[Cell]:
        """The free cells, row by row."""
        return [Cell(r, c) for r, row in enumerate(self.rows) for c, kind in enumerate(row) if kind == "O"]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in cells: x lies in [-width / 2, width / 2], y in [-height / 2, height / 2]."""
        return len(self.rows[0]), len(self.rows)

    def is_free(self, at: Cell) -> bool:
        """Return whether `at` is a cell of the map without a wall."""
        width, height = self.size
        return 0 <= at.row < height and 0 <= at.column < width and self.rows[at.row][at.column] == "O"

    def neighbours(self, at: Cell) -> list[Cell]:
        """Return the free cells that share a side with `at`: right, left, above, below."""
        steps = ((0, 1), (0, -1), (-1, 0), (1, 0))
        around = [Cell(at.row + rows, at.column + columns) for rows, columns in steps]
        return [cell for cell in around if self.is_free(cell)]

    def centre(self, at: Cell) -> tuple[float, float]:
        """Return (x, y) of the middle of a cell."""
        width, height = self.size
        return at.column + 0.5 - width / 2, height / 2 - at.row - 0.5

    def cell(self, x: float, y: float) -> Cell:
        """Return the cell that holds (x, y); it may lie outside the map."""
        width, height = self.size
        return Cell(int((height / 2 - y) // 1), int((x + width / 2) // 1))

    def check_free(self, point: Sequence[float], name: str) -> None:
        """Raise ValueError unless [x, y] is a place where the ball can be; `name` says in the error what it is."""
        numbers = torch.as_tensor(point, dtype=torch.float64)
        if numbers.shape != (2,) or not bool(numbers.isfinite().all()):
            raise ValueError(f"a {name} expects [x, y] in cells, got {point}; the middle of the map is [0, 0].")
        walls, free = self.boxes("#").double(), self.boxes("O").double()
        if float(clearance(numbers, walls, free)) < BALL:
            x, y = min((self.centre(at) for at in self.free), key=lambda at: float((torch.tensor(at) - numbers).norm()))
            raise ValueError(
                f"the {name} [{point[0]}, {point[1]}] lies in a wall, or nearer to one than the ball's radius {BALL}; "
                f"the nearest middle of a free cell is [{x}, {y}]."
            )

    def boxes(self, kind: str) -> Tensor:
        """Return the squares of all cells of a kind, "#" or "O": `(n, 4)`, each [x low, y low, x high, y high]."""
        cells = [Cell(r, c) for r, row in enumerate(self.rows) for c, value in enumerate(row) if value == kind]
        centres = torch.tensor([self.centre(at) for at in cells])
        return torch.cat([centres - 0.5, centres + 0.5], dim=1)


def clearance(points: Tensor, walls: Tensor, free: Tensor) -> Tensor:
    """Return the signed distance of points to the walls: positive in the free, negative inside a wall.

    Args:
        points: `(..., 2)`, in cells.
        walls: `(n, 4)`, the boxes of the wall cells; see `Maze.boxes`.
        free: `(m, 4)`, those of the free cells.
    """
    return distance_to_boxes(points, walls) - distance_to_boxes(points, free)


def distance_to_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Return each point's distance to the nearest of the boxes `(n, 4)`, 0 inside one; shape `points.shape[:-1]`."""
    low, high = boxes[:, :2], boxes[:, 2:]
    apart = (low - points[..., None, :]).clamp(min=0) + (points[..., None, :] - high).clamp(min=0)
    squared = apart.square().sum(-1).amin(-1)
    # The root's derivative at 0 is infinite; there the distance is 0 and its gradient is taken as 0.
    inside = squared == 0
    return torch.where(inside, squared, squared.masked_fill(inside, 1.0).sqrt())
