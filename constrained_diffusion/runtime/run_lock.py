"""One process at a time writes in a run's folder."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from constrained_diffusion.runtime.run_folder import RunFolder

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

LONGEST = 300  #: characters of a command that are kept


class RunInUseError(ValueError):
    """Another process writes in the folder."""


@contextmanager
def locked(run: RunFolder) -> Iterator[bool]:
    """Hold the folder's lock for the length of a block; yields whether it is held, which some file systems cannot do.

    The lock is the system's, on the file `run.lock`: it ends with the process, however that ends, and children do not
    inherit it, so that none of them keeps it alive. The file names the process. One process may take it again.

    Raises:
        RunInUseError: another process holds it; the message names that one.
    """
    file = _take(run)
    try:
        yield file is not None
    finally:
        if file is not None:
            run.lock.unlink(missing_ok=True)  # while it is still locked
            file.close()


def _take(run: RunFolder) -> BinaryIO | None:
    if fcntl is None:
        return None
    while True:
        file = run.lock.open("a+b")
        try:
            # Not `flock`: forked data loaders would inherit it, and outlive a killed process for a while.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _lies_at(file, run.lock):
                break
            file.close()  # its holder has just ended and taken the file away
        except (BlockingIOError, PermissionError) as error:
            with file:
                file.seek(0)
                holder = "".join(c if c.isprintable() else " " for c in file.read(2 * LONGEST).decode(errors="replace"))
            raise RunInUseError(
                f"'{run}' is being written by {holder or 'another process'}: expected one process at a time in a run's "
                "folder; wait for that one or end it, and start this command again."
            ) from error
        except OSError as error:
            file.close()
            warnings.warn(
                f"'{run.lock}' cannot be locked ({error}): see to it that no other command writes there.", stacklevel=2
            )
            return None
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} ({command[:LONGEST]})".encode(errors="replace"))
    file.flush()
    return file


def _lies_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
