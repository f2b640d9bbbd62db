"""What a network is conditioned on: a mapping from its own keyword names to tensors, one row per sample.

A dot leads into a nested mapping: `added_cond_kwargs.text_embeds` is the entry `text_embeds` of the keyword argument
`added_cond_kwargs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Condition = Mapping[str, Tensor]


def take(condition: Condition | None, index: Tensor | Sequence[int] | slice) -> dict[str, Tensor] | None:
    """Return the rows at `index`, which may name a row more than once."""
    if condition is None:
        return None
    index = index if isinstance(index, slice) else torch.as_tensor(index)
    return {
        name: rows[index if isinstance(index, slice) else index.to(rows.device)] for name, rows in condition.items()
    }


def join(conditions: Sequence[Condition]) -> dict[str, Tensor]:
    """Return the rows of all `conditions`, which have the same names, one after the other."""
    return {name: torch.cat([condition[name] for condition in conditions]) for name in conditions[0]}


def blend(chosen: Tensor, condition: Condition, other: Condition) -> dict[str, Tensor]:
    """Return the rows of `condition` where `chosen` `(B,)` is true, else those of `other`."""
    return {
        name: torch.where(chosen.to(rows.device).view(-1, *(1,) * (rows.ndim - 1)), rows, other[name].to(rows))
        for name, rows in condition.items()
    }


def moved(condition: Condition | None, device: torch.device) -> dict[str, Tensor] | None:
    """Return it on `device`."""
    return None if condition is None else {name: rows.to(device) for name, rows in condition.items()}


def arguments(condition: Condition | None, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the keyword arguments of a network in `dtype` for a batch of `rows` samples.

    Raises:
        ValueError: an entry has another number of rows.
    """
    given: dict[str, Any] = {}
    for name, value in (condition or {}).items():
        if len(value) != rows:
            raise ValueError(
                f"the condition '{name}' has {len(value)} rows and the batch {rows}: expected one row per sample."
            )
        outer, _, inner = name.partition(".")
        value = value.to(dtype) if value.is_floating_point() else value
        if inner:
            given.setdefault(outer, {})[inner] = value
        else:
            given[outer] = value
    return given
