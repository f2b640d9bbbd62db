"""What stays in single precision while networks run in half: verdicts, noise levels, regularisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


def to_float32(values: Tensor) -> Tensor:
    """Return `values` in float32, or float64 where they are.

    >>> to_float32(torch.ones(1, dtype=torch.bfloat16)).dtype, to_float32(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def without_autocast(values: Tensor) -> torch.autocast:
    """Return a context without autocast on the device of `values`, which would round the operands of products."""
    return torch.autocast(values.device.type, enabled=False)


def keep_float32(move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return what a module's `_apply` is to do in place of `move`: all of it but rounding to half precision."""

    def apply(values: Tensor) -> Tensor:
        moved = move(values)
        return moved if moved.dtype not in (torch.float16, torch.bfloat16) else to_float32(values.to(moved.device))

    return apply


class Float32ModuleList(nn.ModuleList):
    """Modules that `.to(torch.bfloat16)` of the whole around them leaves in single precision."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return super()._apply(keep_float32(fn), recurse)  # type: ignore[no-untyped-call, no-any-return]
