"""r(M(z)) of one batch, and the checks of what the two maps return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import ismethod
from typing import Any, NamedTuple

from torch import Tensor

from constrained_diffusion.runtime.precision import to_float32

Key = tuple[int, ...]


class Problem(NamedTuple):
    """r(M(z)) for one batch; both maps take a second argument, the rows' contexts repeated as z is."""

    sample: Callable[[Tensor, list[Any]], Tensor]  #: z `(N, ...)` -> x `(N, *shape)`
    reward: Callable[[Tensor, list[Any]], Tensor]  #: x -> `(N,)`
    context: list[Any]  #: one per row, such as a prompt
    keys: list[Key]  #: one per row, for what is drawn


def checked_problem(
    sample: Callable[..., Tensor], reward: Callable[..., Tensor], context: Sequence[Any] | None, keys: list[Key]
) -> Problem:
    """Return the problem of two maps that take contexts only where there are some; what they return is checked.

    Its maps raise TypeError where no tensor is returned, and ValueError where there is not one sample per row of z, not
    one reward per sample, or a reward that is not finite.
    """

    def call(function: Callable[..., Tensor], values: Tensor, contexts: list[Any], kind: str) -> Tensor:
        found: Any = function(values) if context is None else function(values, contexts)
        if not isinstance(found, Tensor):
            raise TypeError(
                f"a {kind} must return a tensor of one entry per row, but {name_of(function)} returned a "
                f"{type(found).__name__}; stack the entries with torch.stack, or torch.tensor where they are numbers."
            )
        return found

    def checked_sample(noise: Tensor, contexts: list[Any]) -> Tensor:
        clean = call(sample, noise, contexts, "sample map")
        if clean.shape[:1] != noise.shape[:1]:
            raise ValueError(
                f"a sample map must return one sample per row of z, {len(noise)}, but {name_of(sample)} returned shape "
                f"{tuple(clean.shape)}; leave the first side as it is."
            )
        return clean

    def checked_reward(clean: Tensor, contexts: list[Any]) -> Tensor:
        values = to_float32(call(reward, clean, contexts, "reward"))  # differences of verdicts, too, are taken below
        if values.shape != clean.shape[:1]:
            raise ValueError(
                f"a reward must return one number per sample, shape {tuple(clean.shape[:1])}, but {name_of(reward)} "
                f"returned {tuple(values.shape)}; average or sum over the rest."
            )
        if not bool(values.isfinite().all()):
            raise ValueError(
                f"{name_of(reward)} returned {first_not_finite(values)} for a sample; a reward must be finite: bound "
                "it, or floor its logarithm."
            )
        return values

    return Problem(checked_sample, checked_reward, list(context) if context is not None else [None] * len(keys), keys)


def name_of(function: Any) -> str:
    """Return what messages call a map: its `__name__`, a method's with its class, or else the name of its class.

    >>> name_of(len), name_of(partial(len)), name_of(object())
    ('len', 'len', 'object')
    """
    function = function.func if isinstance(function, partial) else function
    name: str = function.__qualname__ if ismethod(function) else getattr(function, "__name__", type(function).__name__)
    return name


def first_not_finite(values: Tensor) -> float:
    """Return the first value that is infinite or not a number; there must be one."""
    return float(values.detach()[~values.isfinite()][0])


def check_per_row(name: str, given: Sequence[Any] | None, rows: int) -> None:
    """Raise ValueError where `given` is not None and has not one entry per row."""
    if given is not None and len(given) != rows:
        raise ValueError(f"{name} needs one entry per row of the noise, {rows}, but has {len(given)}.")
