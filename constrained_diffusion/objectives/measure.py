"""The one call of every objective: what it returns is checked, and a mistake is reported by the name of its class.

Type, dtype and shape are known on the host: these checks wait for no device, and run in every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from constrained_diffusion.objectives.base import Constraint, Reward, StepRecord


def measure_constraint(constraint: Constraint, given: Tensor | StepRecord) -> Tensor:
    """Return g of the rows of `given`, `(B, m)`, where `forward` returns `(B,)` or `(B, m)`; negative means feasible.

    Args:
        constraint: a constraint on clean samples, or on steps.
        given: clean samples `(B, *shape)` in the data's units; the step's record where the constraint needs it.

    Raises:
        TypeError: g is no tensor of floats.
        ValueError: g has another shape.
    """
    rows = len(given) if isinstance(given, Tensor) else len(given.timesteps)
    return checked_g(constraint, constraint(given), rows)


def measure_reward(reward: Reward, clean: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
    """Return the rewards of `clean` `(B, *shape)`, in the data's units, `(B,)`; larger is better.

    Args:
        reward: the reward.
        clean: samples.
        prompts: one per row; only a reward that needs them gets them.

    Raises:
        TypeError: it returns no tensor of floats.
        ValueError: it returns another shape.
    """
    return checked_reward(reward, reward(clean, prompts) if reward.needs_prompts else reward(clean), len(clean))


def checked_g(constraint: Constraint, returned: Any, rows: int) -> Tensor:
    """Return what a constraint returned for `rows` samples as `(rows, m)`; raises as `measure_constraint`."""
    values = _floats(constraint, returned)
    # Not reshaped: that would deal the values of `(m, rows)` out to other rows.
    if values.ndim not in (1, 2) or len(values) != rows or (values.ndim == 2 and not values.shape[1]):
        raise ValueError(
            f"{type(constraint).__name__} must return g of shape (B,), or (B, m) for m rules, with B = {rows}, but "
            f"returned {tuple(values.shape)}; keep rows first, as torch.stack([..], dim=1) or values.flatten(1) do."
        )
    return values.unsqueeze(1) if values.ndim == 1 else values


def checked_reward(reward: Reward, returned: Any, rows: int) -> Tensor:
    """Return what a reward returned for `rows` samples, `(rows,)`; raises as `measure_reward`."""
    values = _floats(reward, returned)
    if values.shape != (rows,):
        raise ValueError(
            f"{type(reward).__name__} must return one number per sample, shape (B,) with B = {rows}, but returned "
            f"{tuple(values.shape)}; average or sum over the rest, as in values.flatten(1).mean(1)."
        )
    return values


def _floats(objective: Constraint | Reward, returned: Any) -> Tensor:
    name = type(objective).__name__
    if not isinstance(returned, Tensor):
        kind = type(returned).__name__
        raise TypeError(
            f"{name} must return a tensor of floats, one entry per row, but returned "
            f"{'nothing (None)' if returned is None else f'a {kind}'}; "
            + (
                "end its forward with a return."
                if returned is None
                else "compute it with torch, or wrap it in torch.as_tensor and set differentiable = False."
            )
        )
    if not returned.is_floating_point():
        raise TypeError(
            f"{name} must return a tensor of floats, but returned {_kind(returned.dtype)}; return a distance to the "
            "limit, or a verdict's .float() with differentiable = False."
        )
    return returned


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
