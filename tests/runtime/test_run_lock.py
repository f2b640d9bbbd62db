"""The lock of a run's folder, between processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from constrained_diffusion.runtime import run_lock
from constrained_diffusion.runtime.run_folder import RunFolder
from constrained_diffusion.runtime.run_lock import RunInUseError, locked

pytestmark = pytest.mark.skipif(run_lock.fcntl is None, reason="locks of POSIX")

HOLD = """
import os, sys, time
from pathlib import Path
from constrained_diffusion.runtime.run_folder import RunFolder
from constrained_diffusion.runtime.run_lock import locked

with locked(RunFolder(Path(sys.argv[1]))) as held:
    if sys.argv[2] == "fork" and not os.fork():
        time.sleep(30)  # as a data loader's worker that outlives its parent
        os._exit(0)
    print(held, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(run: Path, fork: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(run), fork]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        assert process.stdout.readline() == "True\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it and its child
        process.communicate()


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        who = f"process {process.pid} on {socket.gethostname()} \\(-c {tmp_path} ?\\)"
        with pytest.raises(RunInUseError, match=f"'{tmp_path}' is being written by {who}: .*wait for that one or end"):
            locked(RunFolder(tmp_path)).__enter__()
        with pytest.raises(RunInUseError):  # having looked does not loosen it
            locked(RunFolder(tmp_path)).__enter__()
        process.communicate("")
        with locked(RunFolder(tmp_path)) as held:
            assert held
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_nothing_that_blocks_even_where_its_child_lives_on(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as process:
        process.kill()
        process.wait()
        assert RunFolder(tmp_path).lock.is_file()
        with locked(RunFolder(tmp_path)) as held:
            assert held
            assert f"process {os.getpid()} on" in RunFolder(tmp_path).lock.read_text()


def test_a_folder_that_was_removed_meanwhile_is_no_error(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "1")
    run.path.mkdir()
    with locked(run):
        run.lock.unlink()
        run.path.rmdir()
    assert not run.path.exists()


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(file: object, operation: int) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", unable)
    with pytest.warns(UserWarning, match="cannot be locked"), locked(RunFolder(tmp_path)) as held:
        assert not held


def test_a_lock_whose_file_was_taken_away_meanwhile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before ended between our opening the file and locking it: what we locked then locks nobody out."""
    run, lock = RunFolder(tmp_path), run_lock.fcntl.lockf
    taken: list[int] = []

    def late(file: BinaryIO, operation: int) -> None:
        if not taken:
            run.lock.unlink()
        taken.append(os.fstat(file.fileno()).st_ino)
        lock(file, operation)

    monkeypatch.setattr(run_lock.fcntl, "lockf", late)
    with locked(run) as held:
        assert held
        assert len(taken) == 2
        assert run.lock.stat().st_ino == taken[1]


def test_the_file_names_its_process_alone_in_one_short_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.lock.write_text("process 1 on another machine (a killed one's)" + "?" * 1000)
    monkeypatch.setattr(sys, "argv", ["/bin/lightning", "fit", "x" * 1000])
    with locked(run):
        command = f"lightning fit {'x' * 1000}"[: run_lock.LONGEST]
        assert run.lock.read_text() == f"process {os.getpid()} on {socket.gethostname()} ({command})"


@pytest.mark.parametrize("error", [BlockingIOError, PermissionError])  # the system may give either
def test_what_another_wrote_reaches_the_terminal_as_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    def held(file: object, operation: int) -> None:
        raise error("held")

    run = RunFolder(tmp_path)
    run.lock.write_bytes(b"process 7\n\x1b[31m on \xffhere")
    monkeypatch.setattr(run_lock.fcntl, "lockf", held)
    with pytest.raises(RunInUseError, match="is being written by process 7") as told, locked(run):
        pass
    assert str(told.value).isprintable()
