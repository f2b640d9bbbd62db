"""Recording how a ball driven from goal to goal moves through a maze: Minari's D4RL/pointmaze data, made here.

The simulator is gymnasium-robotics' PointMaze (MuJoCo); the controller is the one that Minari's own data was made by:
it follows a route from cell centre to cell centre, advances within 0.1 of a waypoint to the next one, drawn up to 0.2
below and to the left of its cell's centre, and pushes with 10 (waypoint - position) - velocity plus noise, clipped.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.routes import Solver, route
from constrained_diffusion.runtime.distribution import needs_extra

if TYPE_CHECKING:
    from minari import MinariDataset

NEAR, SPREAD, NOISE = 0.1, 0.2, 0.5  #: of a waypoint, of its draw, of the action
RESET = 10_000  #: steps after which the ball is put somewhere else


class WaypointController:
    """Drives the ball along a route to each goal it is given.

    Args:
        maze: the maze.
        solver: how routes are found; see `route`.
        random: draws waypoints and noise.
    """

    def __init__(self, maze: Maze, solver: Solver, random: np.random.Generator) -> None:
        self.maze, self.solver, self.random = maze, solver, random
        self._goal = np.full(2, np.inf)
        self._ahead: list[np.ndarray[Any, Any]] = []

    def __call__(
        self, position: np.ndarray[Any, Any], velocity: np.ndarray[Any, Any], goal: np.ndarray[Any, Any]
    ) -> Any:
        """Return the action (2,) in [-1, 1] at `position` with `velocity` on the way to `goal`, each (2,)."""
        if np.abs(goal - self._goal).max() > 1e-3:
            self._goal = goal.copy()
            way = route(self.maze, self.maze.cell(*position), self.maze.cell(*goal), self.solver)
            self._ahead = [np.array(self.maze.centre(at)) for at in way[1:-1]] + [self._goal]
            # The first waypoint is the cell's very centre; those after it are drawn when they come up.
        if len(self._ahead) > 1 and np.linalg.norm(self._ahead[0] - position) <= NEAR:
            del self._ahead[0]
            if len(self._ahead) > 1:
                self._ahead[0] = self._ahead[0] - self.random.uniform(0, SPREAD, 2)
        push = 10 * (self._ahead[0] - position) - velocity + self.random.normal(0, NOISE, 2)
        return np.clip(push, -1, 1)


def dataset_id(name: str, solver: Solver, steps: int, seed: int) -> str:
    """Return the name of a recording in Minari's form.

    >>> dataset_id("medium", "shortest", 1000, 0)
    'constrained-diffusion/pointmaze-medium-shortest-1000-seed0-v0'
    """
    return f"constrained-diffusion/pointmaze-{name}-{solver.replace('_', '-')}-{steps}-seed{seed}-v0"


def record(maze: Maze, name: str, solver: Solver = "shortest", steps: int = 1_000_000, seed: int = 0) -> MinariDataset:
    """Return the recording of these settings, made now if it is not among Minari's local data sets.

    Episodes end where a goal is reached, as in Minari's own data; the ball goes on from there, and every 10,000 steps
    it is put somewhere else at rest. MINARI_DATASETS_PATH says where the data sets lie.

    Args:
        maze: the maze.
        name: what it is called in the data set's name.
        solver: how the controller finds its routes.
        steps: of 0.01 s, at least 1,000.
        seed: of goals, waypoints and noise.

    Raises:
        ValueError: fewer steps.
        ImportError: the extra `maze` is not installed.
    """
    if steps < 1000:
        raise ValueError(f"a recording expects at least 1,000 steps, got {steps}; a million is what Minari's data has.")
    minari, gymnasium = packages()
    wanted = dataset_id(name, solver, steps, seed)
    if wanted in minari.list_local_datasets():
        return minari.load_dataset(wanted)
    environment = gymnasium.make(
        "PointMaze_Medium-v3",
        maze_map=[[1 if kind == "#" else 0 for kind in row] for row in maze.rows],
        continuing_task=True,
        reset_target=True,
        max_episode_steps=steps + 1,
    )
    controller = WaypointController(maze, solver, np.random.default_rng(seed))
    buffers = _episodes(environment.unwrapped, controller, steps, seed)
    with warnings.catch_warnings():  # that e-mail and permalink are missing, which a local data set needs not
        warnings.simplefilter("ignore", UserWarning)
        return minari.create_dataset_from_buffers(
            wanted,
            buffers,
            env=environment,
            algorithm_name=f"waypoint controller, {solver} routes",
            author="constrained_diffusion",
            description=f"Maze {' '.join(maze.rows)}; {solver} routes, {steps} steps, seed {seed}.",
            requirements=["gymnasium-robotics", "mujoco"],
        )


def packages() -> tuple[Any, Any]:
    """Return the modules minari and gymnasium, the latter with the point mazes.

    Raises:
        ImportError: the extra `maze` is not installed.
    """
    with (
        needs_extra("maze", "mazes need minari, gymnasium-robotics and mujoco"),
        contextlib.redirect_stderr(io.StringIO()),  # gymnasium-robotics speaks of environments that are not ours
    ):
        import gymnasium
        import gymnasium_robotics
        import minari
    gymnasium.register_envs(gymnasium_robotics)
    return minari, gymnasium


def _episodes(environment: Any, controller: WaypointController, steps: int, seed: int) -> list[Any]:
    from minari.data_collector import EpisodeBuffer

    observed, _ = environment.reset(seed=seed)
    seen: list[Any] = [observed]
    acted: list[Any] = []
    buffers: list[Any] = []
    for step in track(range(1, steps + 1), description=f"Recording {steps:,} steps in the simulator"):
        state = observed["observation"]
        acted.append(controller(state[:2], state[2:], observed["desired_goal"]))
        reached = observed["desired_goal"]
        observed, *_ = environment.step(acted[-1])
        # As Minari's own: the goal that was reached stands in the last row, and the next one in the next episode.
        arrived = not np.array_equal(observed["desired_goal"], reached)
        seen.append({**observed, "desired_goal": reached})
        elsewhere = step % RESET == 0
        if arrived or elsewhere or step == steps:
            count = len(acted)
            ends = np.arange(1, count + 1) == count
            buffers.append(
                EpisodeBuffer(
                    id=len(buffers),
                    observations={key: np.stack([row[key] for row in seen]) for key in observed},
                    actions=np.stack(acted),
                    rewards=[float(arrived and end) for end in ends],
                    terminations=[False] * count,
                    truncations=ends.tolist(),
                )
            )
            if elsewhere:
                observed, _ = environment.reset()
            seen, acted = [observed], []
    return buffers
