from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.recording import WaypointController, dataset_id, record

minari = pytest.importorskip("minari", reason="minari is not installed")
pytest.importorskip("mujoco", reason="mujoco is not installed")


pytestmark = pytest.mark.usefixtures("minari_folder")


def test_a_recording_is_a_minari_data_set_that_is_made_once(capsys: pytest.CaptureFixture[str]) -> None:
    made = record(Maze.of("umaze"), "umaze", steps=3000, seed=1)
    assert "Recording 3,000 steps" in capsys.readouterr().out
    again = record(Maze.of("umaze"), "umaze", steps=3000, seed=1)
    assert "Recording" not in capsys.readouterr().out
    assert made.total_steps == again.total_steps == 3000
    assert made.spec.dataset_id == dataset_id("umaze", "shortest", 3000, 1) in minari.list_local_datasets()
    told = minari.load_dataset(made.spec.dataset_id).storage.metadata
    assert "shortest" in told["algorithm_name"]
    assert "seed 1" in told["description"]


def test_episodes_join_up_and_end_at_their_goals() -> None:
    episodes = list(record(Maze.of("umaze"), "umaze", steps=3000, seed=1).iterate_episodes())
    assert len(episodes) > 10
    for before, after in pairwise(episodes):
        assert np.array_equal(before.observations["observation"][-1], after.observations["observation"][0])
    for episode in episodes[:-1]:
        last = {key: values[-1] for key, values in episode.observations.items()}
        assert np.linalg.norm(last["observation"][:2] - last["desired_goal"]) <= 0.45  # the environment's own radius
        assert episode.rewards[-1] == 1
        assert episode.truncations[-1]


def test_the_ball_moves_as_physics_says() -> None:
    # m v' = (m v + dt 100 u) / (m + dt), x' = x + dt v', away from walls; m is that of a ball of radius 0.1.
    episode = next(iter(record(Maze.of("open"), "open", steps=1000, seed=0).iterate_episodes()))
    seen, mass = episode.observations["observation"], 4 / 3 * np.pi * 0.1**3 * 1000
    velocity = (mass * np.clip(seen[:-1, 2:], -5, 5) + 0.01 * 100 * episode.actions) / (mass + 0.01)
    assert np.abs(velocity - seen[1:, 2:]).max() < 1e-6
    assert np.abs(seen[:-1, :2] + 0.01 * velocity - seen[1:, :2]).max() < 1e-6


def test_the_controller_pushes_towards_its_waypoint() -> None:
    maze = Maze.of("##### #OOO# #####")
    controller = WaypointController(maze, "shortest", np.random.default_rng(0))
    position, goal = np.array([-1.0, 0.0]), np.array([1.0, 0.0])
    pushes = np.stack([controller(position, np.zeros(2), goal) for _ in range(200)])
    assert pushes[:, 0].min() > 0.99  # 10 x one cell, far beyond the clip
    assert abs(pushes[:, 1].mean()) < 0.1
    assert pushes[:, 1].std() == pytest.approx(0.48, abs=0.06)  # noise of 0.5, clipped at 1
    near = np.array([-0.05, 0.0])  # within 0.1 of the middle cell's centre: on to the goal itself
    controller(near, np.zeros(2), goal)
    assert np.array_equal(controller._ahead[0], goal)


def test_the_depth_first_data_has_longer_episodes() -> None:
    shortest, depth = (record(Maze.of("medium"), "medium", s, 6000) for s in ("shortest", "depth_first"))
    assert depth.total_episodes < shortest.total_episodes


def test_too_short_a_recording_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1,000 steps, got 10"):
        record(Maze.of("umaze"), "umaze", steps=10)
