"""Where a sampler's steps are on a schedule, as diffusers' schedulers place them; the names are diffusers' too.

All grids go from noisy to clean, and hold no end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def timesteps(spacing: str, total: int, steps: int, offset: int = 0) -> list[float]:
    """Return the timesteps of DDIM ("leading", "trailing", "linspace") and of Euler ("interpolated": fractions).

    "solver_leading" and "solver_linspace" are those of DPMSolver, UniPC and their like, which leave the cleanest out.
    In their own arithmetic, so that ties round alike; but a step always leads to the next of them, not to diffusers'
    `t - T // n`, which misses the grid unless n divides T.

    >>> timesteps("leading", 1000, 2), timesteps("trailing", 1000, 2), timesteps("interpolated", 1000, 3)
    ([500, 0], [999, 499], [999.0, 499.5, 0.0])

    Raises:
        ValueError: the spacing is unknown, or the offset leads out of the schedule.
    """
    times: list[float]
    if spacing in ("solver_leading", "solver_linspace"):
        return timesteps(spacing.removeprefix("solver_"), total, steps + 1, offset)[:-1]
    if spacing == "leading":
        times = [i * (total // steps) + offset for i in reversed(range(steps))]
    elif spacing == "trailing":  # cut, because rounding errors may give arange one element too many
        times = [int(t) - 1 for t in np.arange(total, 0, -total / steps)[:steps].round()]
    elif spacing == "linspace":
        times = [int(t) for t in np.linspace(0, total - 1, steps).round()[::-1]]
    elif spacing == "interpolated":
        times = np.linspace(0, total - 1, steps)[::-1].tolist()
    else:
        raise ValueError(
            "spacing must be one of leading, trailing, linspace, interpolated, solver_leading, solver_linspace, lcm, "
            f"{', '.join(SIGMAS)} for a model of DDPM's family, got '{spacing}'."
        )
    if not 0 <= times[-1] <= times[0] < total:
        raise ValueError(
            f"steps_offset={offset} puts the timesteps in [{times[-1]}, {times[0]}], outside the "
            f"schedule's [0, {total - 1}]; lower it, or take fewer steps."
        )
    return times


def lcm(total: int, original_steps: int, steps: int) -> list[float]:
    """Return the timesteps of a latent consistency model, out of those that it was distilled at.

    >>> lcm(1000, 50, 4)
    [999, 759, 499, 259]

    Raises:
        ValueError: there are not so many.
    """
    if steps > original_steps:
        raise ValueError(f"expected at most {original_steps} steps, those of the distillation, got {steps}.")
    origin = [i * (total // original_steps) - 1 for i in range(original_steps, 0, -1)]
    return [origin[int(i)] for i in np.floor(np.linspace(0, original_steps, steps, endpoint=False))]


def karras(low: float, high: float, steps: int, rho: float = 7.0) -> list[float]:
    """Return sigmas from `high` to `low`, even in sigma^(1 / rho) (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    >>> [round(sigma, 3) for sigma in karras(0.002, 80.0, 3)]
    [80.0, 2.515, 0.002]
    """
    ramp = np.linspace(0, 1, steps)
    sigmas: list[float] = ((high ** (1 / rho)) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return list(map(float, sigmas))


def exponential(low: float, high: float, steps: int) -> list[float]:
    """Return sigmas from `high` to `low`, even in log sigma.

    >>> [round(sigma, 3) for sigma in exponential(0.01, 1.0, 3)]
    [1.0, 0.1, 0.01]
    """
    return [float(sigma) for sigma in np.exp(np.linspace(math.log(high), math.log(low), steps))]


SIGMAS: dict[str, Callable[[float, float, int], list[float]]] = {"karras": karras, "exponential": exponential}
