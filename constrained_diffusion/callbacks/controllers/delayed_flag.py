"""A decision of the device that the host reads one step late."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DelayedFlag:
    """A yes or no, computed on the device in one step and read on the host in the next.

    Read at once it would stop the host until the device has done the step, and then leave the device without work
    until the next one is sent. A step later the answer has come by itself, and every rank reads the same one.
    """

    def __init__(self) -> None:
        self._value: Tensor | None = None  # scalar of bool, on the host, once the event has happened
        self._copied: Any = None  # the event

    def set(self, flag: Tensor) -> None:
        """Send the scalar `flag` to the host, and do not wait."""
        self._value, self._copied = flag.detach().clone(), None
        if flag.is_cuda:
            self._value = torch.empty((), dtype=flag.dtype, pin_memory=True).copy_(flag, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def get(self) -> bool:
        """Return the flag that was put last, or False if there is none; waits for that step alone."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._value is not None and bool(self._value)

    def restore(self, flag: bool) -> None:
        """Hold what `get` gave before a checkpoint."""
        self._value, self._copied = torch.tensor(flag), None
