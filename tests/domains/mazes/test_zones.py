"""Zones: where they are drawn, and a count of connected positions by scipy that says what room they leave."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy import ndimage

from constrained_diffusion.domains.mazes.layout import BALL, Cell, Maze
from constrained_diffusion.domains.mazes.routes import travel
from constrained_diffusion.domains.mazes.zones import check_room, draw_zones, well_travelled

SEEDS = range(10)
STEP = 0.05


def stays_connected(maze: Maze, centres: list[list[float]], radius: float) -> bool:
    """Whether one connected part of the ball's positions off all zones visits every free cell; numpy and scipy."""
    width, height = maze.size
    x, y = np.arange(0, width, STEP) - width / 2, height / 2 - np.arange(0, height, STEP)
    at = np.stack(np.meshgrid(x, y), axis=-1)
    clear = np.ones(at.shape[:2], dtype=bool)
    for r, row in enumerate(maze.rows):
        for c, kind in enumerate(row):
            if kind == "#":
                gap = np.maximum(np.abs(at - np.array(maze.centre(Cell(r, c)))) - 0.5, 0)
                clear &= np.hypot(gap[..., 0], gap[..., 1]) > BALL - 1e-9
    for centre in centres:
        clear &= np.hypot(*np.moveaxis(at - np.array(centre), -1, 0)) >= radius
    parts, number = ndimage.label(clear)
    side = round(1 / STEP)
    cells = [parts[at.row * side : (at.row + 1) * side, at.column * side : (at.column + 1) * side] for at in maze.free]
    return any(all((cell == part).any() for cell in cells) for part in range(1, number + 1))


def passes(maze: Maze, centres: list[list[float]], radius: float) -> bool:
    try:
        check_room(maze, centres, radius)
    except ValueError as error:
        return "infeasible" not in str(error)
    return True


@pytest.mark.parametrize("count", [1, 2, 3])
def test_room_is_what_scipy_counts_in_a_maze_without_loops(count: int) -> None:
    """Without a loop and beside cells that are whole, the passages are open if and only if all is connected."""
    maze, generator = Maze.of("umaze"), np.random.default_rng(count)
    verdicts = []
    for _ in range(60):
        cell = [maze.free[i] for i in generator.integers(len(maze.free), size=count)]
        centres = [(np.array(maze.centre(at)) + generator.uniform(-0.5, 0.5, 2)).tolist() for at in cell]
        radius = generator.uniform(0.2, 0.8)
        verdicts.append(passes(maze, centres, radius))
        assert verdicts[-1] == stays_connected(maze, centres, radius), (centres, radius)
    assert 5 < sum(verdicts) < 55  # both happen


def test_a_closed_corridor_is_infeasible_even_where_a_loop_leads_round_it() -> None:
    maze = Maze.of("medium")
    centre = [*maze.centre(Cell(3, 3))]
    assert stays_connected(maze, [centre], 0.6)  # the long way round
    with pytest.raises(ValueError, match=r"zone 1 at \[-0.5, 0.5\] is infeasible: radius 0.6 leaves .* smaller radius"):
        check_room(maze, [[-2.5, 0.5 + 2], centre], 0.6)
    check_room(maze, [[centre[0], centre[1] + 0.25]], 0.3)


@pytest.mark.parametrize(("radius", "room"), [(0.3, True), (0.59, True), (0.61, False)])
def test_the_ball_needs_room_beside_a_zone(radius: float, room: bool) -> None:
    """From a centre 0.2 above the axis, a radius of 0.6 reaches the lowest line that the ball can roll on, at -0.4."""
    assert passes(Maze.of("umaze"), [[0.0, 1.2]], radius) is room


def test_two_zones_that_close_a_corridor_only_together() -> None:
    maze = Maze.of("umaze")
    above, below = [0.0, 1.28], [0.0, 0.72]
    for centre in (above, below):
        check_room(maze, [centre], 0.3)
    with pytest.raises(
        ValueError, match=re.escape("zone 0 at [0, 1.28] and zone 2 at [0, 0.72] are together infeasible")
    ):
        check_room(maze, [above, [0.0, -1.3], below], 0.3)


def test_a_cell_without_a_position_left_is_lost() -> None:
    maze = Maze.of("open")
    check_room(maze, [[0.0, 0.0]], 0.5)
    with pytest.raises(ValueError, match=r"zone 0 .* no way into row 2, column 3"):
        check_room(maze, [[0.0, 0.0]], 0.75)


@pytest.mark.parametrize("centre", [[4.1, 0.0], [0.0, -5.0], [math.nan, 0.0], [math.inf, 0.0]])
def test_a_zone_outside(centre: list[float]) -> None:
    with pytest.raises(
        ValueError, match=r"zone 1 at .* infeasible: it lies outside the maze, where x is in \[-4.0, 4.0"
    ):
        check_room(Maze.of("medium"), [[-2.5, 2.25], centre], 0.3)


def test_a_zone_inside_walls() -> None:
    maze = Maze.of("umaze")
    with pytest.raises(ValueError, match=r"zone 0 at \[-0.5, 0\] is infeasible: with radius 0.5 it lies wholly inside"):
        check_room(maze, [[-0.5, 0.0]], 0.5)
    check_room(maze, [[-0.5, 0.0]], 0.55)  # reaches 0.05 into the corridors above and below


@pytest.mark.parametrize(("centres", "radius"), [([], 0.3), ([[0.0]], 0.3), ([[0.0, 1.0]], 0.0), ([[0.0, 1.0]], -1)])
def test_zones_that_are_none(centres: list[list[float]], radius: float) -> None:
    with pytest.raises(ValueError, match="at least one centre .* and a positive radius"):
        check_room(Maze.of("umaze"), centres, radius)


def test_well_travelled_corridors() -> None:
    assert well_travelled(Maze.of("medium")) == ((3, 3), (4, 5), (5, 6))
    assert well_travelled(Maze.of("umaze")) == ((2, 3), (1, 2))
    assert well_travelled(Maze.of("open")) == ()
    maze = Maze.of("large")
    chosen, passed = well_travelled(maze), travel(maze)
    assert len(chosen) == 12
    others = set(maze.free) - set(chosen)
    for at in maze.free:
        right, left, above, below = (
            maze.is_free(Cell(at.row + r, at.column + c)) for r, c in ((0, 1), (0, -1), (-1, 0), (1, 0))
        )
        if (right and left and not above and not below) or (above and below and not right and not left):
            assert at in chosen or passed[at] <= min(passed[one] for one in chosen)
        else:
            assert at in others


@pytest.mark.parametrize("name", ["umaze", "medium", "large"])
def test_drawn_zones(name: str) -> None:
    maze = Maze.of(name)
    corridors = well_travelled(maze)
    drawn = [draw_zones(maze, 2, 0.3, seed) for seed in SEEDS]
    assert drawn[3] == draw_zones(maze, 2, 0.3, 3)
    assert len({str(centres) for centres in drawn}) == len(SEEDS)
    sides = set()
    for centres in drawn:
        check_room(maze, centres, 0.3)
        assert stays_connected(maze, centres, 0.3)
        cells = [maze.cell(*centre) for centre in centres]
        assert len(set(cells)) == 2
        for at, (x, y) in zip(cells, centres, strict=True):
            assert at in corridors
            shift = x - maze.centre(at)[0], y - maze.centre(at)[1]
            along, across = shift if maze.is_free(Cell(at.row, at.column + 1)) else shift[::-1]
            assert abs(along) <= 0.2501
            assert 0.1999 <= abs(across) <= 0.3001
            sides.add(across > 0)
    assert len(sides) == 2


def test_offsets_are_those_asked_for() -> None:
    maze = Maze.of("umaze")
    (centre,) = draw_zones(maze, 1, 0.3, seed=1, offset=(0.25, 0.25))
    assert min(abs(abs(value % 1 - (n % 2) / 2) - 0.25) for value, n in zip(centre, maze.size, strict=True)) < 1e-3


def test_zones_that_would_close_a_corridor_together_are_drawn_again() -> None:
    """Neighbouring corridors, zones so large that some pairs at their common end leave no way between them."""
    maze, again = Maze(("#######", "#OOOOO#", "#######")), 0
    for seed in range(15):
        centres = draw_zones(maze, 2, 0.33, seed, offset=(0.3, 0.3))
        assert stays_connected(maze, centres, 0.33)
        again += abs(centres[0][0] - centres[1][0]) < 1
    assert again


def test_no_room_for_a_draw() -> None:
    with pytest.raises(ValueError, match="none of 100 draws of 1 zones of radius 0.9 leaves room .* infeasible"):
        draw_zones(Maze.of("umaze"), 1, 0.9, seed=0)


def test_fewer_corridors_than_zones() -> None:
    with pytest.raises(ValueError, match="4 zones expect as many well-travelled corridors, but this maze has 3"):
        draw_zones(Maze.of("medium"), 4, 0.3, seed=0)
    with pytest.raises(ValueError, match="this maze has 0"):
        draw_zones(Maze.of("open"), 1, 0.3, seed=0)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"radius": 0.0}, {"offset": (0.3, 0.2)}, {"offset": (0.1, 0.6)}])
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    settings: dict[str, object] = {"count": 2, "radius": 0.3, "seed": 0, **wrong}
    with pytest.raises(ValueError, match="a count of at least 1, a positive radius and an offset"):
        draw_zones(Maze.of("medium"), **settings)  # type: ignore[arg-type]
