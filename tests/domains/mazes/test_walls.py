"""Walls: distances to them against dense samples of the walls themselves, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.layout import Maze, clearance
from constrained_diffusion.domains.mazes.walls import CHUNK, Walls, nearest_distance, room


def scattered(count: int, maze: Maze, beyond: float = 0.0) -> Tensor:
    width, height = maze.size
    drawn = torch.rand(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    return drawn * (torch.tensor([width, height]) / 2 + beyond)


def test_room_is_the_distance_to_the_nearest_of_many_points_on_the_walls_or_of_the_free() -> None:
    maze = Maze.of("umaze")
    path = scattered(200, maze, beyond=1.0)
    side = np.linspace(-0.5, 0.5, 51)
    square = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)

    def nearest(kind: str) -> np.ndarray:
        boxes = maze.boxes(kind).double().numpy()
        filled = ((boxes[:, None, :2] + boxes[:, None, 2:]) / 2 + square).reshape(-1, 2)
        return np.linalg.norm(path.numpy()[:, None] - filled, axis=-1).min(1)

    free = [maze.is_free(maze.cell(x, y)) for x, y in path.tolist()]
    expected = np.where(free, nearest("#"), -nearest("O"))
    found = room(path, *(maze.boxes(kind).double() for kind in "#O"))
    np.testing.assert_allclose(found, expected, atol=0.015)  # samples are 0.02 apart
    assert 0 < sum(free) < len(free)


@pytest.mark.parametrize("name", ["umaze", "medium", "large"])
def test_room_is_the_clearance_within_the_map(name: str) -> None:
    maze = Maze.of(name)
    walls, free = (maze.boxes(kind).double() for kind in "#O")
    path = scattered(300, maze)
    torch.testing.assert_close(room(path, walls, free), clearance(path, walls, free))


def test_more_points_than_a_chunk() -> None:
    boxes, path = Maze.of("umaze").boxes("#"), torch.randn(2, CHUNK, 2)
    torch.testing.assert_close(nearest_distance(path, boxes)[1], nearest_distance(path[1], boxes))


def test_the_value_is_the_distance_asked_for_minus_the_room() -> None:
    clean = torch.tensor([[0.0, 1.3], [0.0, 1.45], [0.0, 1.7], [0.0, 1.0]])[None, None]  # a corridor up to y = 1.5
    torch.testing.assert_close(Walls("umaze")(clean), torch.tensor([[-0.1, 0.05, 0.3, -0.4]]))
    torch.testing.assert_close(Walls("umaze", distance=0.0, reduction="worst")(clean), torch.tensor([0.2]))


def test_gradients() -> None:
    clean = scattered(24, Maze.of("medium"), beyond=1.0).reshape(2, 3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(Walls("medium").double(), (clean,))


@pytest.mark.parametrize("place", [(0.0, 1.95), (0.0, 2.6), (40.0, 1.0), (-0.4, 0.1)])
def test_the_gradient_leads_out_of_a_wall_and_back_from_outside(place: tuple[float, float]) -> None:
    constraint, clean = Walls("umaze"), torch.tensor(place).reshape(1, 1, 1, 2).requires_grad_()
    value = constraint(clean).sum()
    (gradient,) = torch.autograd.grad(value, clean)
    assert float(gradient.norm()) == pytest.approx(1.0)
    moved = (clean - value * gradient).detach()  # 0.1 off the wall
    assert float(constraint(moved)) == pytest.approx(0.0, abs=1e-5)


def test_corners_and_sides_are_finite() -> None:
    clean = torch.tensor([[-1.5, 1.5], [-0.5, 1.5], [-0.5, 0.5], [0.5, 0.0]])[None, None].requires_grad_()
    values = Walls("umaze")(clean)
    torch.testing.assert_close(values, torch.full((1, 4), 0.1))
    values.sum().backward()
    assert clean.grad is not None
    assert bool(clean.grad.isfinite().all())


@pytest.mark.parametrize("distance", [-0.1, 0.5, float("nan")])
def test_distances_out_of_range(distance: float) -> None:
    with pytest.raises(ValueError, match=r"a distance in \[0, 0.5\)"):
        Walls("medium", distance)


def test_what_it_cannot_judge() -> None:
    with pytest.raises(ValueError, match="a reduction of each or worst"):
        Walls("medium", reduction="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="walls all around"):
        Walls(["###", "#OO", "###"])
    with pytest.raises(ValueError, match="Walls expects plans of shape"):
        Walls("medium").check_data((1, 28, 28))
