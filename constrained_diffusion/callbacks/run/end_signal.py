"""What a process hears when it is told to end: SIGTERM, or the signal that SLURM can send before the time is up."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = [number for name in ("SIGTERM", "SIGUSR1") if (number := getattr(signal, name, None))]


class EndSignal:
    """Notes SIGTERM and SIGUSR1 between `listen` and `restore`; whoever asks decides what to do, and when.

    These handlers stand in place of Lightning's, which on several ranks begin a collective of their own in the middle
    of a step and, under SLURM, save at whatever point of the step each rank is.
    """

    def __init__(self) -> None:
        self.received: int | None = None  #: the signal's number
        self._replaced: dict[int, Any] = {}

    def listen(self) -> None:
        """Begin; outside the main thread, where Python allows no handlers, nothing is ever heard."""
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._replaced = {number: signal.signal(number, self._note) for number in SIGNALS}

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._replaced.items():
            if handler is not None:  # None: one that Python did not install
                signal.signal(number, handler)
        self._replaced = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
