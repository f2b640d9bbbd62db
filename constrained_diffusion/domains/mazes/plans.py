"""Plans: how a path through a maze lies in a sample.

A sample is `(L, S, C)`: L tokens of S frames of C channels, [x, y], [x, y, vx, vy] or [x, y, vx, vy, ux, uy], in cells,
cells per second, and units of force in [-1, 1]. The first and the last token stand: all their frames are the first and
the last one of the path. So start and goal are tokens of their own, which a sampler can hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

SECONDS = 0.01  #: between two frames, the simulator's time step
CHANNELS = ("x", "y", "vx", "vy", "ux", "uy")


def points(clean: Tensor) -> Tensor:
    """Return the positions of plans `(B, L, S, C)`, in order: `(B, L * S, 2)`, in cells.

    Raises:
        ValueError: the samples are no plans.
    """
    if clean.ndim != 4 or clean.shape[-1] not in (2, 4, 6):
        raise ValueError(
            "expected plans of shape (B, tokens, frames, channels) with 2, 4 or 6 channels (x, y; vx, vy; ux, uy), got "
            f"{tuple(clean.shape)}; choose a planner, such as the zoo's maze2d_planner."
        )
    return clean.flatten(1, 2)[..., :2]


def check_plans(shape: tuple[int, ...], name: str) -> None:
    """Raise ValueError where samples of `shape` (without batch) are no plans; `name` is what wants them."""
    if len(shape) != 3 or shape[-1] not in (2, 4, 6):
        raise ValueError(
            f"{name} expects plans of shape (tokens, frames, channels) with 2, 4 or 6 channels, got {tuple(shape)}; "
            "choose a planner, such as the zoo's maze2d_planner."
        )


def as_plans(frames: Tensor, frame_stack: int) -> Tensor:
    """Return paths `(B, N, C)` as plans `(B, L, S, C)`: tokens of S frames between a standing first and last token.

    Args:
        frames: N must be a multiple of S.
        frame_stack: S.
    """
    tokens = frames.unflatten(1, (-1, frame_stack))
    ends = frames[:, [0, -1]].clone()
    ends[..., 2:] = 0  # who stands has no velocity, and does not push
    first, last = ends[:, :, None].expand(-1, -1, frame_stack, -1).split(1, dim=1)
    return torch.cat([first, tokens, last], dim=1)
