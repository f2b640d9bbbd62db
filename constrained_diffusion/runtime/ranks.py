"""What ranks tell each other beyond gradients and metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks, 1 where nothing is distributed."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def place() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) where nothing is distributed."""
    return (torch.distributed.get_rank() if torch.distributed.is_initialized() else 0), world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum of `values` over all ranks, detached; sums and counts are reduced, never means."""
    total = values.detach().clone()
    if world_size() > 1:
        torch.distributed.all_reduce(total)
    return total


def gather_from_ranks(part: Any) -> list[Any]:
    """Return what each rank gave, in the order of ranks; parts may differ in size, so they are pickled."""
    if world_size() == 1:
        return [part]
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts
