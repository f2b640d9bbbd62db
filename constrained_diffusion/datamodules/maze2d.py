"""Windows of recorded maze trajectories as plans, from a Minari data set: a local recording, or one by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained_diffusion.batch import Batch
from constrained_diffusion.domains.mazes.layout import Maze, clearance
from constrained_diffusion.domains.mazes.plans import CHANNELS, as_plans
from constrained_diffusion.domains.mazes.recording import packages, record
from constrained_diffusion.domains.mazes.routes import Solver
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows

JOINED = 0.1  #: cells; an episode that begins within one step of the last one's end goes on from there


class PlanWindows(TensorRows):
    """Windows of `(L - 2) * S` consecutive frames, each as a plan `(L, S, C)`; see `maze.plans`.

    Args:
        frames: `(T, C)`, all runs one after the other.
        starts: `(N,)`, the first frame of each window.
        tokens: L.
        frame_stack: S.
    """

    def __init__(self, frames: Tensor, starts: Tensor, tokens: int, frame_stack: int) -> None:
        self.frames, self.starts, self.tokens, self.frame_stack = frames, starts, tokens, frame_stack
        self.condition = self.target = self.latent = self.teacher = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = torch.as_tensor(indices)
        within = torch.arange((self.tokens - 2) * self.frame_stack)
        return Batch(as_plans(self.frames[self.starts[rows, None] + within], self.frame_stack), rows=rows)


class Maze2DDataModule(DiffusionDataModule):
    """Plans from a data set of D4RL's point mazes; windows never cross a place where the ball was put elsewhere.

    Args:
        maze: a name (open, umaze, medium, large) or the rows of a map; of a data set by name, where its walls are.
        dataset: a Minari data set, such as D4RL/pointmaze/medium-v2; None: a recording of our own (`maze.recording`).
        download: fetch `dataset` where it is not among the local ones.
        solver: how a recording's routes are found: "shortest", or "depth_first" as in Minari's own data.
        steps: length of the recording.
        recording_seed: its seed.
        tokens: L of a plan, its standing first and last token included.
        frame_stack: S, frames per token.
        channels: 2 (positions), 4 (and velocities) or 6 (and actions).
        held_out: windows of the last twentieth of the data, for the held-out loss; training sees nothing of it.
        avoid: centres of discs; windows that touch one are left out of training, for models trained on safe data alone.
        avoid_radius: their radius, in cells.
        kwargs: see `DiffusionDataModule`.

    Raises:
        ValueError: too few tokens, other channels, a data set of something else, or one with no window so long.
        FileNotFoundError: the data set is not here and download is off, or it cannot be had.
        ImportError: the extra `maze` is not installed.
    """

    def __init__(
        self,
        maze: str | list[str] = "medium",
        dataset: str | None = None,
        download: bool = False,
        solver: Solver = "shortest",
        steps: int = 1_000_000,
        recording_seed: int = 0,
        tokens: int = 22,
        frame_stack: int = 20,
        channels: int = 2,
        held_out: int = 512,
        avoid: list[list[float]] | None = None,
        avoid_radius: float = 0.3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if tokens < 3 or frame_stack < 1 or channels not in (2, 4, 6) or held_out < 1:
            raise ValueError(
                "Maze2DDataModule expects at least 3 tokens of at least 1 frame, 2, 4 or 6 channels "
                f"({', '.join(CHANNELS)}) and a held-out window; got {tokens}, {frame_stack}, {channels}, {held_out}."
            )
        self.maze, self.maze_name = Maze.of(maze), maze if isinstance(maze, str) and " " not in maze else "own"
        self.dataset, self.download, self.solver = dataset, download, solver
        self.steps, self.recording_seed = steps, recording_seed
        self.tokens, self.frame_stack, self.channels, self.held_out = tokens, frame_stack, channels, held_out
        self.avoid, self.avoid_radius = avoid, avoid_radius

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(L, S, C)."""
        return self.tokens, self.frame_stack, self.channels

    def prepare_data(self) -> None:
        self._recorded()

    def moments(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel over the training frames."""
        self.data  # noqa: B018  (reads the frames)
        mean, std = self._train_frames.double().mean(0), self._train_frames.double().std(0)
        return mean.tolist(), std.tolist()

    def build(self) -> tuple[TensorRows, TensorRows]:
        runs = list(_runs(self._recorded(), self.channels, str(self.dataset)))
        frames = torch.from_numpy(np.concatenate(runs)).float()
        outside = (
            clearance(frames[:: max(1, len(frames) // 20_000), :2], self.maze.boxes("#"), self.maze.boxes("O")) < 0
        )
        if outside.float().mean() > 0.01:
            raise ValueError(
                f"{outside.float().mean():.0%} of the positions in '{self.dataset}' lie in walls of the maze "
                f"'{self.maze_name}': expected gymnasium-robotics' coordinates (the first D4RL's are shifted) and the "
                "maze that the data is from; set `maze`."
            )
        window = (self.tokens - 2) * self.frame_stack
        ends = np.cumsum([len(run) for run in runs])
        split = int(len(frames) * 0.95)
        first = np.concatenate(
            [
                np.arange(end - len(run), end - window + 1)
                for run, end in zip(runs, ends, strict=True)
                if len(run) >= window
            ]
            or [np.zeros(0, dtype=int)]
        )
        train, test = first[first + window <= split], first[first >= split]
        if not len(train) or not len(test):
            raise ValueError(
                f"a plan of {self.tokens} tokens of {self.frame_stack} frames needs {window} steps in a row, but the "
                f"data has {len(train)} such windows to train on and {len(test)} held out; record more steps, or take "
                "fewer tokens."
            )
        train = train[_clear_of(frames[:, :2], train, window, self.avoid, self.avoid_radius)]
        held_out = test[np.linspace(0, len(test) - 1, min(self.held_out, len(test))).astype(int)]
        self._train_frames = frames[:split]
        shape = self.tokens, self.frame_stack
        return PlanWindows(frames, torch.as_tensor(train), *shape), PlanWindows(
            frames, torch.as_tensor(held_out), *shape
        )

    def _recorded(self) -> Any:
        if self.dataset is None:
            return record(self.maze, self.maze_name, self.solver, self.steps, self.recording_seed)
        minari, _ = packages()
        try:
            return minari.load_dataset(self.dataset, download=self.download)
        except Exception as error:  # what Minari raises for absent, cut and unreachable data sets has no common base
            raise FileNotFoundError(
                f"the Minari data set '{self.dataset}' could not be read ({type(error).__name__}: {error}); local ones "
                f"are {', '.join(minari.list_local_datasets()) or 'none'}: name one of them, set download: true on a "
                "machine with network, or leave `dataset` out for a recording of our own."
            ) from error


def _runs(dataset: Any, channels: int, name: str) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the frames `(T, channels)` of each uninterrupted run of the ball, over the episodes it was cut into."""
    pieces: list[np.ndarray[Any, Any]] = []
    follows = np.zeros(2)
    for episode in dataset.iterate_episodes():
        observed = (
            episode.observations["observation"] if isinstance(episode.observations, dict) else episode.observations
        )
        if observed.ndim != 2 or observed.shape[1] != 4 or episode.actions.shape[1:] != (2,):
            raise ValueError(
                f"'{name}' has observations of shape {observed.shape[1:]} and actions of {episode.actions.shape[1:]}: "
                "expected a point maze's, (4,) (x, y, vx, vy) and (2,)."
            )
        if pieces and np.abs(observed[0, :2] - follows).max() > JOINED:
            yield np.concatenate(pieces)
            pieces = []
        # An episode's last observation is the next one's first, where the ball goes on.
        pieces.append(np.concatenate([observed[:-1], episode.actions], axis=1)[:, :channels])
        follows = observed[-1, :2]
    if pieces:
        yield np.concatenate(pieces)


def _clear_of(
    positions: Tensor,
    starts: np.ndarray[Any, Any],
    window: int,
    centres: Sequence[Sequence[float]] | None,
    radius: float,
) -> np.ndarray[Any, Any]:
    """Return which windows keep out of the discs; all of them where there are none."""
    if not centres:
        return np.ones(len(starts), dtype=bool)
    inside = (torch.cdist(positions, torch.tensor(centres)) < radius).any(1).numpy()
    before = np.concatenate([[0], np.cumsum(inside)])
    clear: np.ndarray[Any, Any] = before[starts + window] == before[starts]
    if not clear.any():
        raise ValueError(
            "every window of the data touches a disc of `avoid`; make avoid_radius smaller, or tokens fewer."
        )
    return clear
