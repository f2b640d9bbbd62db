"""Earlier results stay, where a command writes again in a run; and which error says that a disk is full."""

from __future__ import annotations

import errno
from itertools import count
from pathlib import Path


def rename_existing(path: Path) -> None:
    """Rename what lies at `path`, if anything, to the first free of `name-1.ext`, `name-2.ext`, .. beside it."""
    if not path.exists():
        return
    free = next(other for k in count(1) if not (other := path.with_stem(f"{path.stem}-{k}")).exists())
    path.rename(free)


def disk_full(error: BaseException | None) -> OSError | None:
    """Return the error, of `error` and those that it came from, that says the disk or a quota is full; else None.

    >>> disk_full(ValueError("two")), disk_full(OSError(errno.ENOSPC, "No space left on device"))
    (None, OSError(28, 'No space left on device'))
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or error.__context__
    return None
