"""How smooth paths `(n, N, 2)` are: steps, turns and accelerations per frame, in cells, measured in float64.

Steps shorter than `STILL` stand: they have no direction, and standing tokens are not to dilute the figures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STILL = 1e-4  #: cells per frame, 0.01 cells per second; the ball of the data does about 0.03 cells per frame


def step_lengths(paths: Tensor) -> Tensor:
    """Return the distances between consecutive points, `(n, N - 1)`, in cells."""
    return paths.double().diff(dim=1).square().sum(-1).sqrt()


def moving_steps(paths: Tensor) -> Tensor:
    """Return the lengths of all steps that move, of all paths, `(k,)`, in cells."""
    lengths = step_lengths(paths)
    return lengths[lengths > STILL]


def curvature(paths: Tensor) -> Tensor:
    """Return the mean of 1 - cos of the angle between consecutive steps that both move, `(n,)`, in [0, 2].

    0 for straight lines, and for paths without two such steps.
    """
    steps, moving = paths.double().diff(dim=1), step_lengths(paths) > STILL
    direction = steps / step_lengths(paths).masked_fill(~moving, 1.0)[..., None]
    cosine = (direction[:, 1:] * direction[:, :-1]).sum(-1)
    return _mean_where(1 - cosine.clamp(-1, 1), moving[:, 1:] & moving[:, :-1])


def acceleration(paths: Tensor) -> Tensor:
    """Return the mean length of the second differences where at least one of both steps moves, `(n,)`.

    In cells per frame squared; 1 of them is 10,000 cells per second squared. 0 for paths that stand.
    """
    moving = step_lengths(paths) > STILL
    return _mean_where(step_lengths(paths.double().diff(dim=1)), moving[:, 1:] | moving[:, :-1])


def quantile(values: Tensor, q: float) -> float:
    """Return the q-quantile, linear between order statistics, of any number of values `(k,)`, at least 1.

    (`torch.quantile` refuses more than 16 million.)

    >>> quantile(torch.tensor([4.0, 1.0, 2.0]), 0.75)
    3.0
    """
    place = q * (len(values) - 1)
    low = math.floor(place)
    a, b = (float(values.kthvalue(1 + min(k, len(values) - 1)).values) for k in (low, low + 1))
    return a + (place - low) * (b - a)


def plan_statistics(paths: Tensor) -> dict[str, float]:
    """Return what typical plans look like, JSON-ready; what a planner's `statistics.json` holds of its data.

    Returns:
        step_p50, step_p99, step_p999, step_max in cells, over the steps that move, and the means over paths of
        curvature and acceleration.

    Raises:
        ValueError: no path moves, or some are not finite.
    """
    steps = moving_steps(paths)
    if not len(steps) or not bool(paths.isfinite().all()):
        raise ValueError(
            f"plan statistics expect finite paths (n, N, 2) that move, got shape {tuple(paths.shape)} with "
            f"{len(steps)} steps that move; give positions in cells, as maze.plans.points returns them."
        )
    percentiles = {"step_p50": 0.5, "step_p99": 0.99, "step_p999": 0.999, "step_max": 1.0}
    return {
        **{name: quantile(steps, q) for name, q in percentiles.items()},
        "curvature": float(curvature(paths).mean()),
        "acceleration": float(acceleration(paths).mean()),
    }


def _mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of each row's values `(n, k)` where `counted` `(n, k)`, 0 where none is, `(n,)`."""
    return torch.where(counted, values, 0.0).sum(1) / counted.sum(1).clamp(min=1)
