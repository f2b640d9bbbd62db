from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from constrained_diffusion.datamodules import Maze2DDataModule
from constrained_diffusion.datamodules.maze2d import _runs
from constrained_diffusion.domains.mazes.plans import points

minari = pytest.importorskip("minari", reason="minari is not installed")
pytest.importorskip("mujoco", reason="mujoco is not installed")
SMALL: dict[str, Any] = {"maze": "umaze", "steps": 30_000, "tokens": 8, "frame_stack": 5, "held_out": 16}


pytestmark = pytest.mark.usefixtures("minari_folder")


def test_windows_are_what_was_recorded_and_never_cross_a_teleport() -> None:
    module = Maze2DDataModule(**SMALL, channels=6)
    train, held_out = module.data
    assert (len(held_out), module.sample_shape) == (16, (8, 5, 6))
    batch = train.__getitems__([0, len(train) // 2, len(train) - 1])
    assert batch.clean.shape == (3, 8, 5, 6)
    every = train.__getitems__(list(range(0, len(train), 7)))
    steps = points(every.clean).diff(dim=1).norm(dim=-1)
    assert steps.max() < 0.08  # the ball is put elsewhere at steps 10,000 and 20,000, by far more
    moved = every.clean[:, 1:-1].flatten(1, 2)
    assert (moved[:, 1:, :2] - moved[:, :-1, :2] - 0.01 * moved[:, 1:, 2:4]).abs().max() < 1e-4  # x' = x + dt v'
    assert moved[..., 4:].abs().max() <= 1


def test_held_out_windows_share_no_frame_with_training() -> None:
    train, held_out = Maze2DDataModule(**SMALL).data
    trained_on, kept = (
        points(rows.__getitems__(list(range(len(rows)))).clean).flatten(0, 1) for rows in (train, held_out)
    )
    assert not {tuple(row) for row in trained_on.tolist()} & {tuple(row) for row in kept.tolist()}


def test_moments_are_those_of_the_training_frames() -> None:
    module = Maze2DDataModule(**SMALL, channels=4)
    mean, std = module.moments()
    frames = np.concatenate(list(_runs(module._recorded(), 4, "")))[: int(0.95 * 30_000)]
    assert mean == pytest.approx(frames.mean(0).tolist(), abs=1e-5)
    assert std == pytest.approx(frames.std(0).tolist(), rel=1e-3)


def test_only_windows_clear_of_the_discs_are_left() -> None:
    free = Maze2DDataModule(**SMALL, avoid=[[1.2, 0.0]], avoid_radius=0.3)
    train = free.data[0]
    assert 0 < len(train) < len(Maze2DDataModule(**SMALL).data[0])
    away = (points(train.__getitems__(list(range(len(train)))).clean) - torch.tensor([1.2, 0.0])).norm(dim=-1)
    assert away.min() >= 0.3
    with pytest.raises(ValueError, match="every window of the data touches a disc"):
        Maze2DDataModule(**SMALL, avoid=[[0.0, 0.0]], avoid_radius=9.0).data  # noqa: B018


def test_a_data_set_by_name_is_read_as_minari_wrote_it() -> None:
    own = Maze2DDataModule(**SMALL)
    named = Maze2DDataModule(**SMALL, dataset=own._recorded().spec.dataset_id)
    assert torch.equal(own.data[0].__getitems__([5]).clean, named.data[0].__getitems__([5]).clean)


def _other(name: str, observed: int) -> str:
    import gymnasium
    from minari.data_collector import EpisodeBuffer

    box = gymnasium.spaces.Box
    buffers = [
        EpisodeBuffer(
            id=0,
            observations=np.zeros((601, observed), dtype=np.float32),
            actions=np.zeros((600, 2), dtype=np.float32),
            rewards=[0.0] * 600,
            terminations=[False] * 600,
            truncations=[False] * 599 + [True],
        )
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what a data set should tell besides
        minari.create_dataset_from_buffers(
            name,
            buffers,
            observation_space=box(-1, 1, (observed,)),
            action_space=box(-1, 1, (2,)),
            algorithm_name="none",
            author="a test",
        )
    return name


def test_bad_data_sets_are_told() -> None:
    with pytest.raises(ValueError, match=r"has observations of shape \(3,\).*expected a point maze's, \(4,\)"):
        Maze2DDataModule(**SMALL, dataset=_other("test/three-v0", 3)).data  # noqa: B018
    with pytest.raises(ValueError, match="of the positions in 'test/four-v0' lie in walls of the maze 'umaze'"):
        Maze2DDataModule(**SMALL, dataset=_other("test/four-v0", 4)).data  # noqa: B018
    with pytest.raises(FileNotFoundError, match="'test/none-v0' could not be read.*set download: true"):
        Maze2DDataModule(**SMALL, dataset="test/none-v0").data  # noqa: B018
    with pytest.raises(ValueError, match="needs 18000 steps in a row"):
        Maze2DDataModule(**{**SMALL, "tokens": 3602}).data  # noqa: B018
    with pytest.raises(ValueError, match="2, 4 or 6 channels"):
        Maze2DDataModule(channels=3)
