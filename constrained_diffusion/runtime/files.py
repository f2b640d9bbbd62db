"""Files that are whole or not there, earlier ones that stay, and which error says that a disk is full."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends, on the disk before it does.

    A kill, a full disk or an error in the block leaves what was there before; the folder must exist.
    """
    part = path.with_name(f"{path.name}.part")  # in the same folder, so that renaming is no copy; one name, so that
    try:  # what a kill leaves is overwritten by the next
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    with replaced(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write the file whole or not at all, in UTF-8 with the line ends of `text`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


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
