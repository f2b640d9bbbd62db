from __future__ import annotations

import numpy as np
import pytest
import torch

from constrained_diffusion.domains.mazes.layout import NAMED, Cell, Maze, clearance


@pytest.mark.parametrize(
    ("name", "theirs"), [("umaze", "U_MAZE"), ("medium", "MEDIUM_MAZE"), ("large", "LARGE_MAZE"), ("open", "OPEN")]
)
def test_the_named_maps_are_gymnasium_robotics(name: str, theirs: str) -> None:
    maps = pytest.importorskip("gymnasium_robotics.envs.maze.maps", reason="gymnasium-robotics is not installed")
    assert Maze.of(name).rows == tuple("".join("#" if c == 1 else "O" for c in row) for row in getattr(maps, theirs))


def test_coordinates_are_gymnasium_robotics() -> None:
    maze_of = pytest.importorskip("gymnasium_robotics.envs.maze.maze_v4", reason="gymnasium-robotics is not installed")
    maze = Maze.of("medium")
    theirs = maze_of.Maze([[c == "#" for c in row] for row in maze.rows], 1.0, 0.4)
    for at in maze.free:
        centre = maze.centre(at)
        assert centre == pytest.approx(theirs.cell_rowcol_to_xy(np.array(at)))
        assert maze.cell(*centre) == tuple(theirs.cell_xy_to_rowcol(np.array(centre))) == at


def test_clearance_is_the_distance_to_the_walls_measured_on_a_fine_grid() -> None:
    maze = Maze.of("umaze")
    fine = np.stack(np.meshgrid(np.arange(-2.4975, 2.5, 0.005), np.arange(-2.4975, 2.5, 0.005)), -1).reshape(-1, 2)
    wall = np.array([not maze.is_free(maze.cell(*at)) for at in fine])
    places = torch.rand(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 - 2.5
    found = clearance(places, maze.boxes("#").double(), maze.boxes("O").double())
    for place, value in zip(places.numpy(), found.tolist(), strict=True):
        inside = not maze.is_free(maze.cell(*place))
        other = fine[~wall] if inside else fine[wall]
        nearest = np.linalg.norm(other - place, axis=1).min()
        assert value == pytest.approx(-nearest if inside else nearest, abs=0.005)


def test_clearance_has_finite_gradients_on_the_edge_of_a_wall() -> None:
    maze = Maze.of("umaze")
    edge = torch.tensor([[-1.5, 1.0], [-1.5, 1.5], [0.0, 0.0], [-1.0, 1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(clearance(edge, maze.boxes("#"), maze.boxes("O")).sum(), edge)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("##### #OOO# #####O", "rows of one length"),
        ("##### #OGO# #####", "made of '#' .wall. and 'O'"),
        ("##### #OOOO #####", "row 1, column 4 of its border is free"),
        ("##### ##### #####", "at least one free cell"),
        ("##### #O#O# #####", "row 1, column 3 cannot be reached from row 1, column 1"),
        ("mediun", "The named ones are open, umaze, medium, large"),
    ],
)
def test_a_map_that_is_none_is_refused(rows: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Maze.of(rows)


def test_a_maze_is_given_by_name_rows_or_text() -> None:
    assert Maze.of(NAMED["umaze"].split()) == Maze.of(NAMED["umaze"]) == Maze.of("umaze") == Maze.of(Maze.of("umaze"))


def test_a_goal_in_a_wall_is_refused() -> None:
    maze = Maze.of("umaze")
    maze.check_free([1.0, 1.0], "goal")
    with pytest.raises(ValueError, match=r"the goal \[0.0, 0.0\] lies in a wall.*the nearest middle of a free cell is"):
        maze.check_free([0.0, 0.0], "goal")
    with pytest.raises(ValueError, match=r"a goal expects \[x, y\]"):
        maze.check_free([1.0], "goal")
    with pytest.raises(ValueError, match="nearer to one than the ball's radius"):
        maze.check_free([-1.45, 1.0], "start")
    assert not maze.is_free(Cell(-1, 0))
