"""Plans: how a path through a maze lies in a sample.

A sample is `(L, S, C)`: L tokens of S frames of C channels, [x, y], [x, y, vx, vy] or [x, y, vx, vy, ux, uy], in cells,
cells per second, and units of force in [-1, 1]. The first and the last token stand: all their frames are the first and
the last one of the path. So start and goal are tokens of their own, which a sampler can hold.
"""

from __future__ import annotations

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
