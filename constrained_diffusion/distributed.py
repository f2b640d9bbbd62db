"""The one reduction that a training step needs."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum of `values` over all ranks, detached; sums and counts are reduced, never means."""
    total = values.detach().clone()
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return total
