"""The judge's geometry against closed forms and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from constrained_diffusion.domains.mazes import plan_metrics
from constrained_diffusion.domains.mazes.layout import NAMED, Cell, Maze
from constrained_diffusion.domains.mazes.plan_metrics import D4RL, Zones

ONE = Zones(torch.tensor([[0.0, 0.0]]), torch.tensor([0.5]))
UMAZE = Maze.of("umaze")


def path(*points: tuple[float, float]) -> Tensor:
    return torch.tensor([points], dtype=torch.float64)


def random_paths(rows: int, frames: int, step: float, maze: Maze) -> Tensor:
    """Random walks `(rows, frames, 2)` from anywhere in the map, through walls and a little beyond the border."""
    random = torch.Generator().manual_seed(1)
    size = torch.tensor(maze.size, dtype=torch.float64)
    start = (torch.rand(rows, 1, 2, dtype=torch.float64, generator=random) - 0.5) * size
    walk = torch.randn(rows, frames, 2, dtype=torch.float64, generator=random).cumsum(1) * step
    return start + walk


def is_wall(x: float, y: float, maze: Maze) -> bool:
    """Whether the map says so, read with arithmetic of its own."""
    width, height = maze.size
    column, row = math.floor(x + width / 2), math.floor(height / 2 - y)
    return not (0 <= row < height and 0 <= column < width) or maze.rows[row][column] == "#"


def test_a_jump_across_a_zone_is_seen_by_its_segment_alone() -> None:
    across, beside = path((-1, 0.1), (1, 0.1)), path((-1, 0.6), (1, 0.6))
    assert not plan_metrics.points_in_zones(across, ONE).any()
    assert plan_metrics.segments_in_zones(across, ONE).tolist() == [[True]]
    assert not plan_metrics.segments_in_zones(beside, ONE).any()


def test_the_rim_is_allowed_and_so_is_what_float32_makes_of_it() -> None:
    angle = torch.linspace(0, 2 * math.pi, 1000, dtype=torch.float64)
    rim = torch.stack([angle.cos(), angle.sin()], dim=1)
    away = Zones(torch.tensor([[2.3, -1.7]]), torch.tensor([0.3]))
    for deeper, expected in ((0.0, False), (1e-5, True)):
        shifted = (away.centres + (0.3 - deeper) * rim)[None].float()
        assert (plan_metrics.points_in_zones(shifted, away) == expected).all()
    assert plan_metrics.segments_in_zones((away.centres + 0.3 * rim)[None], away).all()  # chords are inside


def test_depth_and_barrier() -> None:
    zones = Zones(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0.5, 1.0]))
    paths = torch.cat([path((0.3, 0), (0, 3)), path((0, 0.6), (0, 3)), path((1.4, 0), (2, 0.9))])
    assert plan_metrics.depth(paths, zones).tolist() == pytest.approx([0.2, 0, 0.4])
    assert plan_metrics.barrier(paths, zones).tolist() == pytest.approx([0.36 - 1, 1.44 - 1, 0.36 - 1])
    assert plan_metrics.points_in_zones(paths, zones).tolist() == [[True, False], [False, False], [True, True]]


def test_zones_by_brute_force() -> None:
    zones = Zones(torch.tensor([[-1.0, 0.7], [1.2, -0.4], [0.0, 0.0]]), torch.tensor([0.3, 0.4, 0.2]))
    paths = random_paths(60, 20, 0.3, UMAZE)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    inside, through = plan_metrics.points_in_zones(paths, zones), plan_metrics.segments_in_zones(paths, zones)
    for row, frames in enumerate(paths):
        for k, point in enumerate(frames):
            near = [math.dist(point, c) < r for c, r in zip(zones.centres.tolist(), zones.radii.tolist(), strict=True)]
            assert bool(inside[row, k]) == any(near)
        for k in range(len(frames) - 1):
            samples = frames[k] + t * (frames[k + 1] - frames[k])
            margin = float((torch.cdist(samples, zones.centres.double()) - zones.radii).min())
            if abs(margin) > 1e-3:
                assert bool(through[row, k]) == (margin < 0)
    assert 0 < int(through.sum()) < through.numel()
    assert (through | inside[:, 1:] == through).all()


@pytest.mark.parametrize("name", NAMED)
def test_walls_by_brute_force(name: str) -> None:
    maze = Maze.of(name)
    paths = random_paths(60, 10, 0.25, maze)
    t = torch.linspace(0, 1, 401, dtype=torch.float64)[:, None]
    inside, through = plan_metrics.points_in_walls(paths, maze), plan_metrics.segments_in_walls(paths, maze)
    for row, frames in enumerate(paths):
        for k, (x, y) in enumerate(frames.tolist()):
            assert bool(inside[row, k]) == is_wall(x, y, maze)
        for k in range(len(frames) - 1):
            sampled = any(is_wall(x, y, maze) for x, y in (frames[k] + t * (frames[k + 1] - frames[k])).tolist())
            assert bool(through[row, k]) or not sampled
            if bool(through[row, k]) != sampled:  # it may cut a corner by less than the samples' spacing
                finer = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None]
                line = frames[k] + finer * (frames[k + 1] - frames[k])
                assert any(is_wall(x, y, maze) for x, y in line.tolist())
    assert 0 < int(through.sum()) < through.numel()


def test_walls_at_known_places() -> None:
    """In the umaze the middle row is free at the right alone: a wall lies between (-1, 1) and (-1, -1)."""
    jump, around = path((-1, 1), (-1, -1)), path((-1, 1), (1, 1), (1, -1), (-1, -1))
    assert plan_metrics.segments_in_walls(jump, UMAZE).tolist() == [[True]]
    assert not plan_metrics.points_in_walls(jump, UMAZE).any()
    assert not plan_metrics.segments_in_walls(around, UMAZE).any()
    assert plan_metrics.segments_in_walls(path((-1, 1), (-1, 1), (-1.2, 0.8)), UMAZE).tolist() == [[False, False]]
    assert plan_metrics.points_in_walls(path((-1, 0), (0, 0), (-2, 1), (9, 9), (1, 0)), UMAZE).tolist() == [
        [True] * 4 + [False]
    ]
    assert plan_metrics.segments_in_walls(path((-1, 0), (-1, 0.1), (8, 8)), UMAZE).tolist() == [[True, True]]


def test_the_sides_of_walls_are_allowed_but_not_the_seams_between_them() -> None:
    along_side, along_seam = path((-1.5, 0.5), (0.5, 0.5)), path((-0.5, 0.5), (-0.5, -0.5))
    assert not plan_metrics.points_in_walls(along_side, UMAZE).any()
    assert not plan_metrics.segments_in_walls(along_side, UMAZE).any()
    assert plan_metrics.segments_in_walls(along_seam, UMAZE).tolist() == [[True]]
    corner = path((0.0, 1.0), (1.0, 0.0))  # touches the corner (0.5, 0.5) and no more
    assert not plan_metrics.segments_in_walls(corner, UMAZE).any()
    assert plan_metrics.segments_in_walls(corner - 0.01, UMAZE).all()


def test_single_points_and_no_paths() -> None:
    assert plan_metrics.segments_in_walls(torch.zeros(2, 1, 2), UMAZE).shape == (2, 0)
    assert plan_metrics.segments_in_zones(torch.zeros(2, 1, 2), ONE).shape == (2, 0)
    assert plan_metrics.points_in_walls(torch.zeros(0, 5, 2), UMAZE).shape == (0, 5)
    assert plan_metrics.depth(torch.zeros(0, 5, 2), ONE).shape == (0,)


def test_goals() -> None:
    goal = torch.tensor([1.0, 0.0])
    paths = torch.cat([path((0, 0), (0.5, 0), (1, 0), (3, 0)), path((0, 0), (0, 1), (0, 2), (0.49, 0))])
    assert plan_metrics.first_reach(paths, goal)[0].item() == 1  # at 0.5 exactly
    assert plan_metrics.first_reach(paths, goal)[1].isnan()
    assert plan_metrics.goal_distances(paths, goal)[0].tolist() == [1, 0.5, 0, 2]
    each = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert plan_metrics.first_reach(paths, each).tolist() == [1, 2]


def test_d4rl_scores_of_known_rewards() -> None:
    scale = plan_metrics.d4rl_scale(Maze.of("medium"))
    assert scale == D4RL["medium"]
    goal = torch.tensor([0.0, 0.0])
    far, near = torch.full((1, 700, 2), 5.0), torch.zeros(1, 700, 2)
    assert plan_metrics.d4rl_score(far, goal, scale).item() == pytest.approx(-4.9686, abs=1e-4)  # -13.13 / 264.26
    assert plan_metrics.d4rl_score(near, goal, scale).item() == pytest.approx(
        222.0805, abs=1e-4
    )  # (600 - 13.13) / 264.26
    late = torch.cat([far[:, :450], near[:, :250]], dim=1)  # 150 of the 600 frames
    assert plan_metrics.d4rl_score(late, goal, scale).item() == pytest.approx(51.7937, abs=1e-4)
    assert plan_metrics.d4rl_scale(Maze.of("open")) is None
    with pytest.raises(ValueError, match="counts 600 frames, but the paths have 420"):
        plan_metrics.d4rl_score(far[:, :420], goal, scale)


def test_the_wall_cells_are_those_of_the_map() -> None:
    maze = Maze.of("medium")
    for row in range(8):
        for column in range(8):
            at = torch.tensor([[maze.centre(Cell(row, column))]])
            assert bool(plan_metrics.points_in_walls(at, maze)) == (not maze.is_free(Cell(row, column)))
