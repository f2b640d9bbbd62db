"""Execution of plans in MuJoCo: gymnasium-robotics' PointMaze, its ball driven along a plan by a tracker.

| symbol | code | unit |
|---|---|---|
| x, v | `positions`, `velocities` of the ball | cells, cells per second |
| x*, v* | what the plan wants in the next frame; v* by central differences, each component held in [-5, 5] | the same |
| u = 12.5 (x* - x) + 1.2 (v* - v), each component held in [-1, 1] | the tracker's force | 100 N |

The environment's own step wraps one step of MuJoCo in copies and a second forward pass; here its model is stepped
directly, after the same clipping of the velocity to [-5, 5], which gives the same numbers several times as fast.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.plans import SECONDS
from constrained_diffusion.domains.mazes.segments import distance_to_segments
from constrained_diffusion.runtime.distribution import needs_extra

STIFFNESS, DAMPING = 12.5, 1.2  #: of the tracker, as in Diffusion Forcing
FASTEST, STRONGEST = 5.0, 1.0  #: the environment's limits of velocity and of force, per component


class Rollout(NamedTuple):
    """What the ball did."""

    positions: Tensor  #: `(n, steps, 2)`, in cells; frame 0 is the start
    velocities: Tensor  #: `(n, steps, 2)`, in cells per second, at the same times


def point_maze(maze: Maze) -> tuple[Any, Any]:
    """Return MuJoCo's model and data of gymnasium-robotics' PointMaze on any map.

    Raises:
        ImportError: mujoco or gymnasium-robotics is not installed.
    """
    require_simulator()
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

    environment = PointMazeEnv(maze_map=[[int(kind == "#") for kind in row] for row in maze.rows], continuing_task=True)
    Path(environment.tmp_xml_file_path).unlink(missing_ok=True)  # it would stay behind
    return environment.model, environment.data


def require_simulator() -> None:
    """Raise ImportError where MuJoCo or gymnasium-robotics is missing."""
    sentence, otherwise = "executing plans needs MuJoCo and gymnasium-robotics", "execute none (`executed: 0`)"
    with needs_extra("maze", sentence, otherwise):
        import mujoco  # noqa: F401

        with contextlib.redirect_stderr(io.StringIO()):  # it speaks of environments that are not ours
            import gymnasium_robotics  # noqa: F401


def execute(maze: Maze, path: Tensor, steps: int | None = None, start_velocity: Tensor | None = None) -> Rollout:
    """Drive the ball along each path, frame by frame, and let it hold the last point afterwards.

    It starts on the path's first point. Leading frames that repeat it are left out: a ball that arrives at speed is not
    to be stopped first.

    Args:
        maze: the maze.
        path: `(n, N, 2)`, in cells, one frame each 0.01 s.
        steps: how many frames to run, the start included; N by default.
        start_velocity: `(n, 2)`, in cells per second, zeros for a start at rest; by default that of the path's first
            moving frames.

    Returns:
        Positions and velocities `(n, steps, 2)`, with dtype and device of `path`.

    Raises:
        ImportError: MuJoCo or gymnasium-robotics is missing.
        ValueError: `path` or `start_velocity` is of another shape or not finite, or `steps` is below 1.
    """
    if path.ndim != 3 or path.shape[1] < 1 or path.shape[2] != 2 or not bool(path.isfinite().all()):
        raise ValueError(
            f"execute expects finite paths (n, N, 2) in cells, got {_described(path)}; take maze.plans.points."
        )
    steps = path.shape[1] if steps is None else steps
    if steps < 1:
        raise ValueError(f"execute expects at least 1 step, got {steps}; leave it out for as many as the path has.")
    if start_velocity is not None and (
        start_velocity.shape != (len(path), 2) or not bool(start_velocity.isfinite().all())
    ):
        raise ValueError(
            f"execute expects one finite start velocity (vx, vy) for each of {len(path)} paths, got "
            f"{_described(start_velocity)}; leave it out for the path's own."
        )
    model, data = point_maze(maze)
    result = torch.zeros(2, len(path), steps, 2, dtype=torch.float64)
    for row, frames in enumerate(path.detach().cpu().double()):
        frames = frames[_standing(frames) :]
        wanted = planned_velocities(frames)
        first = wanted[0] if start_velocity is None else start_velocity[row].cpu().double()
        positions, velocities = _roll(model, data, frames.tolist(), wanted.tolist(), first.tolist(), steps)
        result[:, row] = torch.tensor([positions, velocities], dtype=torch.float64)
    return Rollout(*result.to(path))


def planned_velocities(frames: Tensor) -> Tensor:
    """Return the velocities of paths `(..., N, 2)` by central differences (one-sided at the ends), held in [-5, 5]."""
    if frames.shape[-2] < 2:
        return torch.zeros_like(frames)
    steps = frames.diff(dim=-2)
    inner = (steps[..., 1:, :] + steps[..., :-1, :]) / 2
    return (torch.cat([steps[..., :1, :], inner, steps[..., -1:, :]], dim=-2) / SECONDS).clamp(-FASTEST, FASTEST)


def tracking_error(plan: Tensor, executed: Tensor) -> Tensor:
    """Return the distance of each executed position to the nearest point of its plan's polyline, whichever the frame.

    Args:
        plan: `(n, N, 2)`, in cells.
        executed: `(n, steps, 2)`, in cells.

    Returns:
        `(n, steps)`, in cells.
    """
    plan = torch.cat([plan, plan[:, -1:]], dim=1)  # a plan of a single point has a segment too
    rows = [  # one plan at a time: all pairs of positions and segments are many
        distance_to_segments(positions[:, None], frames[:-1], frames[1:]).amin(1)
        for positions, frames in zip(executed, plan, strict=True)
    ]
    return torch.stack(rows) if rows else executed[..., 0]


def _standing(frames: Tensor) -> int:
    """Return how many leading frames of `(N, 2)` to leave out, so that the second that remains has moved."""
    moved = (frames != frames[0]).any(1)
    return int(moved.int().argmax()) - 1 if bool(moved.any()) else len(frames) - 1


def _roll(
    model: Any, data: Any, frames: list[Any], wanted: list[Any], first: list[float], steps: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Return positions and velocities of one rollout; plain floats, for numpy on pairs costs more than the physics."""
    import mujoco

    mujoco.mj_resetData(model, data)
    data.qpos[:], data.qvel[:] = frames[0], first
    (x, y), (vx, vy) = frames[0], first
    positions, velocities = [[x, y]], [[vx, vy]]
    for step in range(1, steps):
        if step < len(frames):
            (to_x, to_y), (to_vx, to_vy) = frames[step], wanted[step]
        else:
            (to_x, to_y), (to_vx, to_vy) = frames[-1], (0.0, 0.0)
        # The tracker sees the true velocity; the environment clips it only as it steps.
        data.ctrl[0] = _held(STIFFNESS * (to_x - x) + DAMPING * (to_vx - vx), STRONGEST)
        data.ctrl[1] = _held(STIFFNESS * (to_y - y) + DAMPING * (to_vy - vy), STRONGEST)
        data.qvel[0], data.qvel[1] = _held(vx, FASTEST), _held(vy, FASTEST)
        mujoco.mj_step(model, data)
        (x, y), (vx, vy) = data.qpos.tolist(), data.qvel.tolist()
        positions.append([x, y])
        velocities.append([vx, vy])
    return positions, velocities


def _held(value: float, limit: float) -> float:
    return limit if value > limit else -limit if value < -limit else value


def _described(values: Tensor) -> str:
    return f"shape {tuple(values.shape)}" + (
        "" if bool(values.isfinite().all()) else " with values that are not finite"
    )
