"""Where the host reads a value of the device: `.item()`, `bool()`, `float()`, `.tolist()`, `.numpy()`, `.cpu()`.

On a GPU torch tells by itself, in its sync debug mode, and tells of copies to the device too. On a CPU nothing waits;
there the same reads are counted, by operators and by methods.
"""

from __future__ import annotations

import collections
import traceback
from typing import Any, Self

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OPERATORS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default}
METHODS = {Tensor.tolist, Tensor.numpy, Tensor.cpu}
MACHINERY = ("torch/", "speed_parts/host.py")


class HostReads:
    """Counts, while it is open, the places that read; `found` maps "file:line" to how often."""

    def __init__(self) -> None:
        self.found: collections.Counter[str] = collections.Counter()
        self._modes = [_Operators(self.found), _Methods(self.found)]

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Operators(TorchDispatchMode):
    def __init__(self, found: collections.Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in OPERATORS:
            self.found[_place()] += 1
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, found: collections.Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METHODS:
            self.found[_place()] += 1
        return func(*args, **(kwargs or {}))


def _place() -> str:
    frames = [f for f in traceback.extract_stack() if not any(part in f.filename for part in MACHINERY)]
    return f"{frames[-1].filename.rpartition('site-packages/')[2]}:{frames[-1].lineno}"


class BetweenLogSteps(Callback):
    """Watches whole batches of a fit, with their loading, from the start of one batch to the start of a later one.

    On a GPU a read is an error there and then.

    Args:
        first, last: indices of the two batches, in one epoch.
    """

    def __init__(self, first: int = 1, last: int = 3) -> None:
        self.first, self.last, self.reads = first, last, HostReads()

    @property
    def per_batch(self) -> dict[str, float]:
        """The places that read, and how often in one batch."""
        return {place: count / (self.last - self.first) for place, count in self.reads.found.items()}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        cuda = trainer.strategy.root_device.type == "cuda"
        if batch_idx == self.first:
            torch.cuda.set_sync_debug_mode("error") if cuda else self.reads.__enter__()
        if batch_idx == self.last:
            torch.cuda.set_sync_debug_mode("default") if cuda else self.reads.__exit__(None, None, None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")
