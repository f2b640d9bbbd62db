"""What a picture of a plan shows, read from its pixels; places are counted in cells of the map, row by row."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torch import Tensor

from constrained_diffusion.domains.mazes.drawing import draw_overlay, draw_plans, plan_overlays, plan_pictures
from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.plans import points

UMAZE = Maze.of("umaze")  # 5 x 5; the upper corridor is row 1, at y = 1, the lower one row 3, at y = -1
CELL = 20
SIZE = 5 * CELL


def line(start: tuple[float, float], end: tuple[float, float], count: int = 200) -> Tensor:
    share = torch.linspace(0, 1, count)[:, None]
    return (1 - share) * torch.tensor(start) + share * torch.tensor(end)


def at(picture: Tensor, x: float, y: float) -> Tensor:
    """The colour of the pixel that holds a point of the u maze, by hand."""
    return picture[:, int((2.5 - y) * CELL), int((x + 2.5) * CELL)]


def decoded(png: bytes) -> Tensor:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return data.reshape(image.height, image.width, 3).permute(2, 0, 1) / 255


TOP = line((-1, 1), (1, 1))


def test_walls_are_dark_and_the_floor_is_light_in_every_cell() -> None:
    for name, width, height in (("umaze", 5, 5), ("large", 12, 9)):
        maze = Maze.of(name)
        [picture] = draw_plans(torch.full((1, 3, 2), float("nan")), maze, size=width * CELL)
        assert picture.shape == (3, height * CELL, width * CELL)
        for row, cells in enumerate(maze.rows):
            for column, kind in enumerate(cells):
                block = picture[:, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
                assert bool((block < 0.3).all()) if kind == "#" else bool((block > 0.9).all()), (name, row, column)


def test_a_path_lies_where_its_points_are_and_goes_from_blue_to_orange() -> None:
    [picture] = draw_plans(TOP[None], UMAZE, size=SIZE)
    red, green, blue = at(picture, -0.7, 1)
    assert blue > 0.7 > red
    red, green, blue = at(picture, 0.7, 1)
    assert red > 0.7 > blue
    assert red > green > blue
    [empty] = draw_plans(torch.full((1, 3, 2), float("nan")), UMAZE, size=SIZE)
    changed = (picture != empty).any(0).nonzero()
    assert changed[:, 0].min() >= 1.25 * CELL  # around row 1 alone, y = 1 being up
    assert changed[:, 0].max() < 1.75 * CELL
    assert CELL < changed[:, 1].min() < 1.5 * CELL
    assert 3.5 * CELL < changed[:, 1].max() < 4 * CELL


def test_time_runs_along_the_path() -> None:
    there, back = draw_plans(torch.stack([TOP, TOP.flip(0)]), UMAZE, size=SIZE)
    torch.testing.assert_close(at(there, -0.5, 1), at(back, 0.5, 1), atol=0.02, rtol=0)
    assert (at(there, -0.5, 1) - at(back, -0.5, 1)).abs().max() > 0.3


def test_zones_are_translucent_discs_and_points_inside_are_red() -> None:
    centres, radius = [(0.0, 1.2), (0.0, 0.0)], 0.4  # the second one lies on a wall
    [plain] = draw_plans(TOP[None] - 9, UMAZE, centres, radius, size=SIZE)
    red, green, blue = at(plain, 0, 1.3)
    assert red > 0.9 > max(green, blue) > 0.5
    on_wall = at(plain, 0, 0.1)
    assert on_wall[0] > on_wall[1] + 0.1
    assert on_wall.max() < 0.5
    for x, y in ((0.6, 1.2), (-0.6, 0.9), (1.0, 1.0)):
        assert (at(plain, x, y) > 0.9).all()  # beyond the rim
    [crossing] = draw_plans(TOP[None], UMAZE, centres, radius, size=SIZE)
    red, green, blue = at(crossing, 0.05, 1)  # 0.2 below the centre
    assert red > 0.6
    assert max(green, blue) < 0.2
    assert at(crossing, -0.6, 1)[2] > 0.7  # outside it keeps its colour: 0.63 from the centre
    [edge, own] = draw_plans(torch.stack([TOP, TOP]), UMAZE, centres, torch.tensor([0.1, 0.1]), size=SIZE)
    assert at(edge, 0.05, 1)[2] > 0.5  # smaller discs are missed
    assert torch.equal(edge, own)


def test_a_jump_leaves_a_gap_between_the_dots() -> None:
    jumping = torch.cat([line((-1, 1), (-0.4, 1)), line((0.4, 1), (1, 1))])[None]
    [dotted], [plain] = (draw_plans(jumping, UMAZE, size=SIZE, dots=dots) for dots in (True, False))
    thickness = [
        int((p[:, CELL : 2 * CELL, int(2.5 * CELL)].amin(0) < 0.85).sum()) for p in (dotted, plain)
    ]  # in the gap's middle
    beside = int((dotted[:, CELL : 2 * CELL, int(1.85 * CELL)].amin(0) < 0.85).sum())
    assert 0 < thickness[0] < thickness[1]
    assert thickness[0] < beside


def test_the_executed_path_is_dashed_and_dark_and_the_goal_is_gold() -> None:
    executed = TOP[None] - torch.tensor([0.0, 0.3])
    [picture] = draw_plans(TOP[None], UMAZE, goal=(1, -1), size=SIZE, executed=executed)
    dashes = picture[:, int(1.8 * CELL), int(1.7 * CELL) : int(3.3 * CELL)].amax(0)
    assert dashes.min() < 0.5
    assert dashes.max() > 0.9
    assert int((dashes.sub(0.7).sign().diff() != 0).sum()) >= 6
    red, green, blue = at(picture, 1, -1)
    assert min(red, green) > 0.7 > 0.3 > blue
    goals = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    first, second = draw_plans(TOP.expand(2, -1, -1), UMAZE, goal=goals, size=SIZE)
    assert at(first, 1, -1)[2] < 0.3 < at(first, -1, -1)[2]
    assert at(second, -1, -1)[2] < 0.3 < at(second, 1, -1)[2]


def test_a_diverged_plan_can_be_drawn() -> None:
    broken = TOP.clone()
    broken[:50] = float("nan")
    broken[60] = torch.tensor([float("inf"), 0.0])
    broken[70] = 1e30
    [picture] = draw_plans(broken[None], UMAZE, [(0.0, 0.0)], 0.3, size=SIZE)
    finite = broken[broken.isfinite().all(1)]
    assert len(finite) == 149
    assert torch.equal(picture, draw_plans(finite[None], UMAZE, [(0.0, 0.0)], 0.3, size=SIZE)[0])
    assert at(picture, 0.7, 1)[0] > 0.7 > at(picture, 0.7, 1)[2]
    assert draw_plans(TOP[None][:0], UMAZE, size=SIZE).shape == (0, 3, SIZE, SIZE)
    assert draw_overlay(TOP[None][:0], UMAZE)


def test_many_plans_on_top_of_each_other() -> None:
    bottom = line((1, -1), (-1, -1))
    paths = torch.stack([TOP] * 12 + [bottom])
    picture = decoded(draw_overlay(paths, UMAZE, size=SIZE))
    assert picture.shape == (3, SIZE, SIZE)
    often, once = at(picture, 0.05, 1), at(picture, 0.05, -1)
    assert once.min() < 0.9  # visible
    assert often.min() < once.min() - 0.15  # but fainter than twelve
    assert (at(picture, 1, 0.05) > 0.9).all()
    crossing = decoded(draw_overlay(paths, UMAZE, [(0.0, 1.0)], 0.3, size=SIZE))
    assert at(crossing, 0.05, 1)[0] > 0.6 > 0.4 > at(crossing, 0.05, 1)[2]


def test_the_same_plans_give_the_same_bytes() -> None:
    paths = torch.stack([TOP, TOP.flip(0)])
    assert draw_overlay(paths, UMAZE, [(0.0, 1.0)], 0.3) == draw_overlay(paths, UMAZE, [(0.0, 1.0)], 0.3)
    assert torch.equal(draw_plans(paths, UMAZE), draw_plans(paths.double().requires_grad_(), UMAZE))


def test_plans_are_drawn_by_their_positions() -> None:
    clean = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = draw_plans(clean[..., :2].reshape(2, 20, 2), UMAZE, [(0.0, 1.0)], 0.3, (1, -1))
    assert torch.equal(plan_pictures(clean, UMAZE, [(0.0, 1.0)], 0.3, (1, -1)), expected)
    alone, both = plan_overlays(clean, UMAZE), plan_overlays(clean, UMAZE, executed=TOP[None])
    assert list(alone) == [""]
    assert both == {"": draw_overlay(points(clean), UMAZE), "executed": draw_overlay(TOP[None], UMAZE)}


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"paths are expected as \(n, points, 2\), got \(2, 4, 5, 6\)"):
        draw_plans(torch.zeros(2, 4, 5, 6), UMAZE)
    with pytest.raises(ValueError, match=r"executed are expected as \(1, points, 2\), got \(2, 200, 2\)"):
        draw_plans(TOP[None], UMAZE, executed=torch.stack([TOP, TOP]))
    with pytest.raises(ValueError, match="5 x 5 cells expect a size of at least 10 pixels, got 7"):
        draw_overlay(TOP[None], UMAZE, size=7)
