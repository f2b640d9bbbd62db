"""How far a loop is: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track

_Item = TypeVar("_Item")
SILENCE = 30.0  #: seconds between two lines


def tracked(items: Sequence[_Item], description: str, silent: bool = False) -> Iterator[_Item]:
    """Yield the `items`, and show how many are done and how long the rest will take.

    Args:
        items: what the loop goes over; each should take about as long.
        description: what is being done.
        silent: show nothing, as on all ranks but the first.
    """
    if sys.stdout.isatty():
        yield from track(items, description=description, disable=silent)
        return
    began = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if not silent and now - said >= SILENCE and done < len(items):
            said, left = now, (now - began) * (len(items) - done) / done
            rank_zero_info(f"{description}: {done} of {len(items)} batches, {in_words(left)} left")


def in_words(seconds: float) -> str:
    """Return a duration.

    >>> in_words(7.2), in_words(130), in_words(3723)
    ('0:07', '2:10', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
