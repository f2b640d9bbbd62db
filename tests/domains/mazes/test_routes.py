from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path

from constrained_diffusion.domains.mazes.layout import NAMED, Cell, Maze
from constrained_diffusion.domains.mazes.routes import Solver, route, travel


@pytest.mark.parametrize("name", NAMED)
def test_shortest_routes_are_as_long_as_scipys(name: str) -> None:
    maze = Maze.of(name)
    index = {at: i for i, at in enumerate(maze.free)}
    graph = np.zeros((len(index), len(index)))
    for at, i in index.items():
        for other, j in index.items():
            graph[i, j] = abs(at.row - other.row) + abs(at.column - other.column) == 1
    expected = shortest_path(csr_matrix(graph), unweighted=True)
    for at, i in index.items():
        for other, j in index.items():
            assert len(route(maze, at, other)) == expected[i, j] + 1


@pytest.mark.parametrize("solver", ["shortest", "depth_first"])
def test_routes_go_from_cell_to_neighbouring_cell_and_never_twice_through_one(solver: Solver) -> None:
    maze = Maze.of("large")
    for start in maze.free[::5]:
        for goal in maze.free[::3]:
            way = route(maze, start, goal, solver)
            assert (way[0], way[-1]) == (start, goal)
            assert len(set(way)) == len(way)
            assert all(b in maze.neighbours(a) for a, b in pairwise(way))


def test_depth_first_takes_the_last_neighbour_first() -> None:
    # From the upper left of an open room: right, below are pushed; below comes off first, down to the corner.
    way = route(Maze.of("#### #OO# #OO# ####"), Cell(1, 1), Cell(1, 2), "depth_first")
    assert way in ([Cell(1, 1), Cell(1, 2)], [Cell(1, 1), Cell(2, 1), Cell(2, 2), Cell(1, 2)])
    longer = sum(
        len(route(Maze.of("medium"), a, b, "depth_first")) > len(route(Maze.of("medium"), a, b))
        for a in Maze.of("medium").free
        for b in Maze.of("medium").free
    )
    assert longer > 50


def test_travel_counts_the_routes_through_a_cell() -> None:
    maze = Maze.of("##### #OOO# #####")  # of the six ordered pairs, two pass the middle
    assert travel(maze) == {Cell(1, 2): 2}


def test_walls_and_solvers_are_checked() -> None:
    maze = Maze.of("umaze")
    with pytest.raises(ValueError, match="a goal in a free cell, but row 0, column 0 is a wall or outside"):
        route(maze, Cell(1, 1), Cell(0, 0))
    with pytest.raises(ValueError, match="solver must be one of shortest, depth_first, got 'best'"):
        route(maze, Cell(1, 1), Cell(1, 2), "best")  # type: ignore[arg-type]
