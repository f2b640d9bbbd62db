"""Pictures of plans: the maze from above, its forbidden zones, and the way a plan takes through it.

| mark | meaning |
|---|---|
| dark squares, light ground | walls, floor |
| red translucent disc | a forbidden zone |
| dots on a thin line, blue to orange | the plan's points in order of time; a plan that jumps shows as separate dots |
| dark red dots | points inside a zone |
| blue dot, orange ring, gold star | start, end, goal |
| dark dashed line | the path that was executed |

Everything is drawn some times larger and then reduced, which smooths all edges. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.plans import points

if TYPE_CHECKING:
    from PIL.Image import Image

Colour = tuple[int, int, int]
Pixel = tuple[float, float]

FLOOR, WALL = (248, 247, 243), (47, 54, 66)
ZONE, ZONE_EDGE, INSIDE = (232, 62, 52, 70), (205, 40, 32), (170, 0, 12)
COURSE: tuple[Colour, ...] = ((29, 92, 232), (142, 68, 205), (250, 130, 20))  #: start, middle, end
GOAL, INK, WHITE = (255, 204, 0), (24, 28, 36), (255, 255, 255)
ENLARGED = 3  #: how much larger than its picture everything is drawn
FAINT = 75  #: opacity, of 255, of one plan among many
ROUNDING = 1e-6  #: cells; nearer to a zone's rim, a point in float32 is not inside


def draw_plans(
    paths: Tensor,
    maze: Maze,
    zones: Tensor | Sequence[Sequence[float]] | None = None,
    radius: float | Tensor = 0.0,
    goal: Tensor | Sequence[float] | None = None,
    size: int = 160,
    executed: Tensor | None = None,
    dots: bool = True,
) -> Tensor:
    """Draw one picture per path.

    Args:
        paths: `(n, N, 2)`, in cells; points that are not finite are left out.
        maze: what they run through.
        zones: the centres of forbidden discs, `(k, 2)`, in cells.
        radius: of every disc, in cells, or `(k,)`, one for each.
        goal: `(2,)` for all paths or `(n, 2)`, in cells.
        size: about how many pixels the longer side has; every cell has the same whole number of them.
        executed: `(n, T, 2)`, what the simulator made of the paths.
        dots: whether the single points stand out from the line that joins them.

    Returns:
        `(n, 3, H, W)` in [0, 1], on the CPU. The point (x, y) lies at column (x + width / 2) W / width and row
        (height / 2 - y) H / height of a maze of width x height cells.

    Raises:
        ValueError: tensors of other shapes, or a size that leaves less than two pixels to a cell.
    """
    scene = _Scene(maze, zones, radius, size)
    ways, ground = _finite(paths, "paths"), scene.ground()
    driven = None if executed is None else _finite(executed, "executed", len(paths))
    goals = None if goal is None else _plain(goal).expand(len(paths), 2)
    pictures = []
    for row, path in enumerate(ways):
        sheet = ground.copy()
        scene.draw_path(sheet, path, dots)
        if driven is not None:
            scene.draw_dashes(sheet, driven[row])
        scene.draw_ends(sheet, path)
        if goals is not None:
            scene.draw_goal(sheet, goals[row])
        pictures.append(_tensor(sheet))
    return torch.stack(pictures) if pictures else torch.zeros(0, *_tensor(ground).shape)


def draw_overlay(
    paths: Tensor,
    maze: Maze,
    zones: Tensor | Sequence[Sequence[float]] | None = None,
    radius: float | Tensor = 0.0,
    goal: Tensor | Sequence[float] | None = None,
    size: int = 480,
    dots: bool = True,
) -> bytes:
    """Draw all paths, translucent, into one picture, and return it as PNG; arguments and errors as `draw_plans`."""
    from PIL import Image

    scene = _Scene(maze, zones, radius, size)
    ways, sheet = _finite(paths, "paths"), scene.ground()
    scale, opacity = (1.0, 255) if len(ways) == 1 else (0.5, FAINT)
    for path in ways:
        layer = Image.new("RGBA", sheet.size)
        scene.draw_path(layer, path, dots, scale, opacity)
        sheet.alpha_composite(layer)
    scene.draw_zones(sheet, edges=True)
    for path in ways:
        scene.draw_ends(sheet, path, scale)
    if goal is not None:
        for place in _plain(goal).reshape(-1, 2).unique(dim=0):
            scene.draw_goal(sheet, place)
    file = io.BytesIO()
    sheet.reduce(ENLARGED).convert("RGB").save(file, "PNG", optimize=True)
    return file.getvalue()


def plan_pictures(clean: Tensor, maze: Maze, zones: Any = None, radius: Any = 0.0, goal: Any = None) -> Tensor:
    """Draw plans `(B, L, S, C)` by `draw_plans`: `(B, 3, H, W)` in [0, 1]."""
    return draw_plans(points(clean), maze, zones, radius, goal)


def plan_overlays(
    clean: Tensor,
    maze: Maze,
    zones: Any = None,
    radius: Any = 0.0,
    goal: Any = None,
    executed: Tensor | None = None,
) -> dict[str, bytes]:
    """Draw plans `(B, L, S, C)`, and what was `executed` `(B, T, 2)` if given, by `draw_overlay`.

    Returns:
        {"": the plans} and, where there are some, "executed": their executions; PNG.
    """
    drawn = {"": points(clean)} if executed is None else {"": points(clean), "executed": executed}
    return {name: draw_overlay(paths, maze, zones, radius, goal) for name, paths in drawn.items()}


class _Scene:
    """A maze with its zones, and the way from cells to the pixels of an enlarged sheet."""

    def __init__(self, maze: Maze, zones: Any, radius: Any, size: int) -> None:
        cell = round(size / max(maze.size))
        if cell < 2:
            raise ValueError(
                f"pictures of a maze of {maze.size[0]} x {maze.size[1]} cells expect a size of at least "
                f"{2 * max(maze.size)} pixels, got {size}; 160 shows plans well."
            )
        self.maze, self.cell = maze, cell * ENLARGED
        self.zones = torch.zeros(0, 2) if zones is None else _plain(zones).reshape(-1, 2)
        self.radii = _plain(radius).expand(len(self.zones))

    def ground(self) -> Image:
        """Return a new sheet (RGBA) with floor, walls and zones."""
        from PIL import Image, ImageDraw

        width, height = (side * self.cell for side in self.maze.size)
        sheet = Image.new("RGBA", (width, height), FLOOR)
        draw = ImageDraw.Draw(sheet)
        for row, line in enumerate(self.maze.rows):
            for column, kind in enumerate(line):
                if kind == "#":
                    x, y = column * self.cell, row * self.cell
                    draw.rectangle((x, y, x + self.cell - 1, y + self.cell - 1), fill=WALL)
        self.draw_zones(sheet)
        self.draw_zones(sheet, edges=True)
        return sheet

    def draw_zones(self, sheet: Image, edges: bool = False) -> None:
        """Lay the translucent discs over the sheet, or draw their `edges`."""
        from PIL import Image, ImageDraw

        for centre, radius in zip(self._pixels(self.zones), self.radii.tolist(), strict=True):
            disc, width = _box(centre, radius * self.cell), max(ENLARGED, round(0.04 * self.cell))
            if edges:
                ImageDraw.Draw(sheet).ellipse(disc, outline=ZONE_EDGE, width=width)
            else:
                layer = Image.new("RGBA", sheet.size)
                ImageDraw.Draw(layer).ellipse(disc, fill=ZONE)
                sheet.alpha_composite(layer)

    def draw_path(self, sheet: Image, path: Tensor, dots: bool, scale: float = 1.0, opacity: int = 255) -> None:
        """Draw the points `(N, 2)` and what joins them, replacing the sheet's pixels."""
        from PIL import ImageDraw

        draw, places = ImageDraw.Draw(sheet), self._pixels(path)
        course = [(*_course(i / max(1, len(places) - 1)), opacity) for i in range(len(places))]
        apart = (path[:, None].double() - self.zones).square().sum(-1).sqrt()
        inside = (apart < self.radii - ROUNDING).any(1).tolist()
        thick = max(1.5, 0.065 * self.cell * scale)
        for a, b, colour in zip(places, places[1:], course, strict=False):
            draw.line((*a, *b), fill=colour, width=max(1, round((0.6 if dots else 2) * thick)))
        for place, colour in zip(places, course, strict=True):
            draw.ellipse(_box(place, thick), fill=colour)
        for place in (place for place, bad in zip(places, inside, strict=True) if bad):
            draw.ellipse(_box(place, thick), fill=(*INSIDE, min(255, 2 * opacity)))

    def draw_ends(self, sheet: Image, path: Tensor, scale: float = 1.0) -> None:
        """Draw a dot at the first point of `(N, 2)` and a ring at the last one."""
        from PIL import ImageDraw

        if not len(path):
            return
        draw, size = ImageDraw.Draw(sheet), 0.17 * self.cell * scale
        first, *_, last = self._pixels(path[[0, -1]])
        edge = max(1, round(0.35 * size))
        draw.ellipse(_box(first, size), fill=COURSE[0], outline=WHITE, width=edge)
        draw.ellipse(_box(last, 1.15 * size), fill=WHITE)
        draw.ellipse(_box(last, size), outline=COURSE[-1], width=round(1.3 * edge))

    def draw_dashes(self, sheet: Image, path: Tensor) -> None:
        """Draw a dashed line through the points `(T, 2)`: 0.16 cells drawn, 0.12 left out."""
        from PIL import ImageDraw

        draw, places, gone = ImageDraw.Draw(sheet), self._pixels(path), 0.0
        for a, b in pairwise(places):
            if gone % (0.28 * self.cell) < 0.16 * self.cell:
                draw.line((*a, *b), fill=INK, width=max(1, round(0.05 * self.cell)))
            gone += math.dist(a, b)

    def draw_goal(self, sheet: Image, goal: Tensor) -> None:
        """Draw a star at `(2,)`."""
        from PIL import ImageDraw

        [(x, y)] = self._pixels(goal[None])
        for size, colour in ((0.36, INK), (0.27, GOAL)):
            reach = [size * self.cell * (1.0 if corner % 2 == 0 else 0.45) for corner in range(10)]
            star = [(x + r * math.sin(i * math.pi / 5), y - r * math.cos(i * math.pi / 5)) for i, r in enumerate(reach)]
            ImageDraw.Draw(sheet).polygon(star, fill=colour)

    def _pixels(self, path: Tensor) -> list[Pixel]:
        """Return where points `(N, 2)` lie on the sheet; far away ones at a place well outside of it."""
        width, height = self.maze.size
        x = (path[:, 0] + width / 2).clamp(-width, 2 * width) * self.cell
        y = (height / 2 - path[:, 1]).clamp(-height, 2 * height) * self.cell
        return list(zip(x.tolist(), y.tolist(), strict=True))


def _finite(given: Tensor, name: str, count: int | None = None) -> list[Tensor]:
    """Return each path's finite points, `(<= N, 2)`, in float32 on the CPU."""
    if given.ndim != 3 or given.shape[-1] != 2 or count not in (None, len(given)):
        rows = "n" if count is None else count
        raise ValueError(
            f"{name} are expected as ({rows}, points, 2), got {tuple(given.shape)}; of a batch of plans take "
            "`maze.plans.points(clean)`."
        )
    return [path[path.isfinite().all(1)] for path in _plain(given)]


def _plain(values: Any) -> Tensor:
    return torch.as_tensor(values).detach().to("cpu", torch.float32)


def _course(share: float) -> Colour:
    """Return the colour at a share in [0, 1] of the way from start to end."""
    place = min(share, 1.0) * (len(COURSE) - 1)
    index = min(int(place), len(COURSE) - 2)
    red, green, blue = (
        round(a + (place - index) * (b - a)) for a, b in zip(COURSE[index], COURSE[index + 1], strict=True)
    )
    return red, green, blue


def _box(centre: Pixel, radius: float) -> tuple[float, float, float, float]:
    x, y = centre
    return x - radius, y - radius, x + radius, y + radius


def _tensor(sheet: Image) -> Tensor:
    """Return an enlarged sheet as a picture `(3, H, W)` in [0, 1]."""
    image = sheet.reduce(ENLARGED).convert("RGB")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(image.height, image.width, 3).permute(2, 0, 1).float() / 255
