"""Samples that satisfy their constraints for certain: each seed draws until one of its samples does.

The accepted samples are independent draws from p(x | g(x) <= tolerance), and each depends on its own seed alone: draw 0
of seed s has the seed s itself, draw k > 0 has `attempt_seed(s, k)`. Nothing else changes: where nothing is rejected,
the samples are those that the seeds give anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime.randomness import mix


class InfeasibleError(RuntimeError):
    """Some seed found no feasible sample in all its draws."""


class RejectionResult(NamedTuple):
    """What `rejection_sample` found; row i belongs to seed i."""

    samples: Tensor  #: `(N, *shape)`; where a seed found no feasible sample, its last one
    draws: Tensor  #: `(N,)`, int64 on the CPU: how many samples the seed drew, the accepted one included
    accepted: Tensor  #: `(N,)`, bool on the CPU: whether its sample is feasible


@dataclass(frozen=True)
class Rejection:
    """Samples that satisfy the constraints for certain: each seed draws until one of its samples does.

    Args:
        max_draws: a seed that has found no feasible sample after so many is given up.

    Raises:
        ValueError: max_draws < 1.
    """

    max_draws: int = 100

    def __post_init__(self) -> None:
        if self.max_draws < 1:
            message = f"max_draws must be at least 1, the draw that every seed has anyway; got {self.max_draws}."
            raise ValueError(message)


def attempt_seed(seed: int, attempt: int) -> int:
    """Return the seed of draw number `attempt` (0, 1, ..) of `seed`: itself first, then 63-bit seeds derived from it.

    >>> attempt_seed(7, 0), attempt_seed(7, 1) == attempt_seed(7, 2)
    (7, False)
    """
    return mix(seed, attempt) if attempt else seed


def rejection_sample(
    draw: Callable[[list[int], list[int]], Tensor],
    feasible: Callable[[Tensor], Tensor],
    seeds: Sequence[int],
    max_draws: int = 100,
) -> RejectionResult:
    """Draw for every seed until its sample is feasible; the rows still open are drawn together.

    Args:
        draw: maps seeds, and the places in `seeds` that they are drawn for, to samples `(len(seeds), *shape)`, one per
            seed and dependent on that seed alone.
        feasible: maps samples `(B, *shape)` to `(B,)`, true or 1 where a sample is feasible.
        seeds: N different ones, at least one.
        max_draws: a seed that has found nothing after so many is given up, and its row of `accepted` is False.

    Raises:
        ValueError: max_draws < 1, or `feasible` does not give one truth value per sample.
    """
    Rejection(max_draws)
    samples = draw(list(seeds), list(range(len(seeds))))
    draws, accepted = torch.ones(len(samples), dtype=torch.long), _truth(feasible(samples), len(samples))
    for attempt in range(1, max_draws):
        rows = (~accepted).nonzero().squeeze(1)
        if not len(rows):
            break
        again = draw([attempt_seed(seeds[row], attempt) for row in rows.tolist()], rows.tolist())
        samples = samples.index_copy(0, rows.to(samples.device), again)
        draws[rows] += 1
        accepted[rows] = _truth(feasible(again), len(again))
    return RejectionResult(samples, draws, accepted)


def check_rejection(constraints: Iterable[Constraint]) -> None:
    """Raise ValueError where no constraint can judge a finished sample."""
    given = list(constraints)
    if not given:
        raise ValueError(
            "`rejection` expects a constraint to reject by, but the model has none; give `constraints`, or leave "
            "`rejection` out."
        )
    if all(constraint.needs_step_record or not constraint.has_verdict for constraint in given):
        names = ", ".join(type(constraint).__name__ for constraint in given)
        raise ValueError(
            f"`rejection` judges finished samples, but {names} judges none (needs_step_record, or "
            "has_verdict: false); give a constraint of the clean sample, or leave `rejection` out."
        )


def _truth(values: Tensor, count: int) -> Tensor:
    if values.shape != (count,):
        raise ValueError(
            f"`feasible` must return one truth value per sample, shape ({count},), got {tuple(values.shape)}; reduce "
            "several inequalities first, as in `(g <= tolerance).all(1)`."
        )
    return values.bool().cpu()
