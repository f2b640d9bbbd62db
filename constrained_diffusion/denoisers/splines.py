"""Paths as cubic splines: what noise leaves of a path that moves by forces, and so has no corners."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

STEP = 0.02  #: a step of a path, in units of its deviation


def spline_projection(frames: int, knots: int) -> Tensor:
    """Return the matrix `(frames, frames)` that fits cubic splines to paths by least squares, float64.

    The basis is the cubic B-spline at uniform knots (de Boor 1978), those outside that reach in among them.

    Args:
        frames: N, of a path.
        knots: frames between knots; 1 leaves every path as it is.

    Raises:
        ValueError: fewer than 1.
    """
    if knots < 1:
        raise ValueError(
            f"expected at least 1 frame between the knots of splines, got {knots}; 8 is the zoo's planner's."
        )
    if knots == 1:
        return torch.eye(frames, dtype=torch.float64)
    time = torch.arange(frames, dtype=torch.float64)[:, None] / knots
    away = (time - torch.arange(-1, -(-(frames - 1) // knots) + 2)).abs()
    basis = torch.where(away < 1, 2 / 3 - away**2 + away**3 / 2, (2 - away).clamp(min=0) ** 3 / 6)
    return basis @ torch.linalg.pinv(basis)


def along(matrix: Tensor, path: Tensor) -> Tensor:
    """Return the matrix `(N, N)` applied to the frames of each path `(B, N, C)`, as one product."""
    return torch.einsum("st,btc->bsc", matrix, path)


def derivatives(sample: Tensor, sigma: Tensor, smooth: Tensor) -> list[Tensor]:
    """Return the smoothed path, and its first and second differences from frame to frame, in units of their noise.

    Steps of a path are a fiftieth of its deviation: beside it, what is noise in them would be invisible at low noise,
    and what is left of it makes a path ragged.

    Args:
        sample: x_t `(B, L, S, C)`, in network units.
        sigma: sqrt(1 - abar), broadcastable to it.
        smooth: the matrix `(L * S, L * S)` of `spline_projection`.
    """
    path, variance = sample.flatten(1, 2), sigma.square().expand_as(sample).flatten(1, 2)
    found = [along(smooth, path).view(sample.shape)]
    for _ in range(2):
        smooth = pad(smooth.diff(dim=0), (0, 0, 1, 0))
        noise = along(smooth.square(), variance)
        found.append((along(smooth, path) / (noise + STEP**2).sqrt()).view(sample.shape))
    return found
