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
