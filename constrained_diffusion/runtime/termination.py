"""What a command still does when SIGTERM ends it, even while it waits for other ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def before_termination(act: Callable[[], object]) -> Iterator[None]:
    """Call `act` where SIGTERM comes inside the block, then exit with status 143; it runs in a thread of its own.

    An outside launcher terminates all ranks as soon as one has failed. A rank that waits for the others does so in C++,
    where Python's signal handlers are put off until the wait is over; hence the thread. Whoever installs a handler of
    their own, as Lightning does while it trains, takes over; a signal that is handled when the block begins is left
    alone, and so are blocks outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(ours, act), name="termination", daemon=True)
    watcher.start()
    signal.signal(signal.SIGTERM, _nothing)
    before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        pythons.close()  # ends the watcher
        watcher.join()
        ours.close()


def _watch(signals: socket.socket, act: Callable[[], object]) -> None:
    while number := signals.recv(1):
        if number[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is _nothing:
            act()
            os._exit(128 + signal.SIGTERM)


def _nothing(signum: int, frame: object) -> None:
    """Be a handler of Python's, without which the watcher is told nothing."""


def _in_forked_child() -> None:
    # A child's signals would reach the parent's watcher, and the parent would take them for its own.
    if signal.getsignal(signal.SIGTERM) is _nothing:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_in_forked_child)
