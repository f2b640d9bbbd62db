"""Execution of plans, against the environment's own step and the free ball's closed form."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.layout import Maze, clearance
from constrained_diffusion.domains.mazes.simulator import execute, planned_velocities, require_simulator, tracking_error
from constrained_diffusion.runtime.distribution import install_hint

MEDIUM, OPEN = Maze.of("medium"), Maze.of("open")


@pytest.fixture(autouse=True)
def simulator(request: pytest.FixtureRequest) -> None:
    if "light" not in request.node.name:
        pytest.importorskip("mujoco", reason="the physics needs the extra maze")
        pytest.importorskip("gymnasium_robotics", reason="the physics needs the extra maze")


def wander(rows: int, frames: int, seed: int = 0, step: float = 0.02) -> Tensor:
    """Smooth random paths `(rows, frames, 2)` that know no walls, from the first free cell of the medium maze."""
    noise = torch.randn(rows, frames, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    heading = noise.cumsum(1) * 0.3
    steps = step * heading / heading.norm(dim=-1, keepdim=True)
    steps[:, 0] = 0
    return torch.tensor(MEDIUM.centre(MEDIUM.free[0]), dtype=torch.float64) + steps.cumsum(1)


def by_the_environment(path: Tensor, steps: int, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """One path `(N, 2)` driven through gymnasium-robotics' own `step`, the tracker written out in numpy."""
    require_simulator()  # its first import speaks of other environments
    import gymnasium
    import gymnasium_robotics
    import numpy as np

    gymnasium.register_envs(gymnasium_robotics)
    rows = [[1 if kind == "#" else 0 for kind in row] for row in MEDIUM.rows]
    environment = gymnasium.make(
        "PointMaze_Medium-v3", maze_map=rows, continuing_task=True, max_episode_steps=steps + 1
    )
    environment.reset(seed=0)
    point = environment.unwrapped.point_env
    plan = np.concatenate([path.numpy(), np.repeat(path.numpy()[-1:], steps, 0)])
    aims = np.gradient(path.numpy(), 0.01, axis=0).clip(-5, 5)
    aims = np.concatenate([aims, np.zeros((steps, 2))])
    point.set_state(path[0].numpy(), velocity.numpy())
    seen = np.concatenate([path[0].numpy(), velocity.numpy()])
    states = [seen]
    for k in range(1, steps):
        action = (12.5 * (plan[k] - seen[:2]) + 1.2 * (aims[k] - seen[2:])).clip(-1, 1)
        seen = environment.step(action)[0]["observation"]
        states.append(seen)
    environment.close()
    Path(environment.unwrapped.tmp_xml_file_path).unlink()
    found = torch.tensor(np.array(states))
    return found[:, :2], found[:, 2:]


def test_the_physics_is_that_of_the_environment() -> None:
    """Also in contact with walls, and beyond the end of the path."""
    paths = wander(3, 150, step=0.04)
    ball = execute(MEDIUM, paths, steps=200)
    touched = clearance(ball.positions, MEDIUM.boxes("#").double(), MEDIUM.boxes("O").double()).amin(1) < 0.101
    assert touched.any()
    for row, path in enumerate(paths):
        start = int((path != path[0]).any(1).int().argmax()) - 1
        velocity = ((path[start + 1] - path[start]) / 0.01).clamp(-5, 5)
        positions, velocities = by_the_environment(path[start:], 200, velocity)
        assert (ball.positions[row] - positions).abs().max() < 1e-10
        assert (ball.velocities[row] - velocities).abs().max() < 1e-10


def test_a_free_ball_moves_in_closed_form() -> None:
    """v' = (m v + dt 100 u) / (m + dt damping), x' = x + dt v', with m = 4 pi r^3 1000 / 3."""
    target = torch.tensor([[[-1.0, 0.0], [1.0, 0.5]]], dtype=torch.float64)  # far off: the force saturates
    ball = execute(OPEN, target, steps=60, start_velocity=torch.tensor([[0.5, -0.2]], dtype=torch.float64))
    mass = 4 / 3 * torch.pi * 0.1**3 * 1000
    x, v = target[0, 0], torch.tensor([0.5, -0.2], dtype=torch.float64)
    for k in range(1, 60):
        aim = torch.tensor([5.0, 5.0]) if k == 1 else torch.zeros(2)
        force = (12.5 * (target[0, 1] - x) + 1.2 * (aim - v)).clamp(-1, 1)
        v = (mass * v.clamp(-5, 5) + 0.01 * 100 * force) / (mass + 0.01)
        x = x + 0.01 * v
        assert torch.allclose(ball.positions[0, k], x, atol=1e-9)
        assert torch.allclose(ball.velocities[0, k], v, atol=1e-9)


def test_a_wall_stops_the_ball() -> None:
    x, y = MEDIUM.centre(MEDIUM.free[0])
    path = torch.stack([torch.linspace(x, x - 2, 100), torch.full((100,), y)], dim=1)[None]  # through the left wall
    ball = execute(MEDIUM, path, steps=200).positions
    assert ball.dtype == torch.float32
    assert ball[..., 0].min() == pytest.approx(x - 0.4, abs=0.03)  # 0.1 off the wall, which gives a little
    assert float(tracking_error(path, ball).max()) < 0.05  # the plan passes there too


def test_a_plan_that_can_be_followed_is_followed() -> None:
    angle = torch.linspace(0, 2 * torch.pi, 300, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    assert float(tracking_error(circle, execute(OPEN, circle).positions).max()) < 0.02


def test_a_stand_at_the_start_does_not_stop_the_ball() -> None:
    line = torch.stack([torch.linspace(-2, 2, 150), torch.zeros(150)], dim=1).double()[None]
    standing = torch.cat([line[:, :1].expand(-1, 20, -1), line], dim=1)
    assert torch.equal(execute(OPEN, line, 170).positions, execute(OPEN, standing).positions)
    rest = execute(OPEN, line, start_velocity=torch.zeros(1, 2, dtype=torch.float64))
    assert rest.velocities[0, 0].tolist() == [0, 0]
    assert rest.positions[0, 10, 0] < execute(OPEN, line).positions[0, 10, 0] - 0.05


def test_a_plan_that_stands_stays() -> None:
    still = torch.full((2, 5, 2), 0.25)
    assert torch.equal(execute(OPEN, still, 9).positions, torch.full((2, 9, 2), 0.25))
    assert execute(OPEN, torch.zeros(0, 5, 2)).positions.shape == (0, 5, 2)
    assert tracking_error(torch.zeros(0, 5, 2), torch.zeros(0, 9, 2)).shape == (0, 9)


def test_light_planned_velocities() -> None:
    t = torch.arange(20, dtype=torch.float64) * 0.01
    wanted = planned_velocities(torch.stack([t.square(), 9 * t], dim=1))
    assert torch.allclose(wanted[1:-1, 0], 2 * t[1:-1])  # central differences are exact on parabolas
    assert wanted[:, 1].tolist() == [5.0] * 20


def test_light_tracking_error_is_to_the_polyline_not_to_the_frame() -> None:
    plan = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
    executed = torch.tensor([[[0.9, 0.0], [0.5, 0.2], [1.3, 0.6], [2.0, 1.0]]])
    assert tracking_error(plan, executed)[0].tolist() == pytest.approx([0, 0.2, 0.3, 1.0], abs=1e-6)
    assert tracking_error(plan[:, :1], executed[:, :1]).item() == pytest.approx(0.9)


def test_no_file_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    execute(OPEN, torch.zeros(1, 2, 2))
    assert not list(tmp_path.iterdir())


def test_light_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"finite paths \(n, N, 2\) in cells, got shape \(3, 2\); take"):
        execute(OPEN, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 2\) with values that are not finite"):
        execute(OPEN, torch.full((1, 3, 2), torch.nan))
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        execute(OPEN, torch.zeros(1, 3, 2), steps=0)
    with pytest.raises(ValueError, match=r"each of 1 paths, got shape \(2,\); leave it out"):
        execute(OPEN, torch.zeros(1, 3, 2), start_velocity=torch.zeros(2))
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("maze")) + ", or execute none"):
        execute(OPEN, torch.zeros(1, 3, 2))
