"""What happens at SIGTERM, in processes of their own: the command acts, even where C++ keeps Python waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from constrained_diffusion.runtime import termination

BEGIN = """
import ctypes, os, runpy, signal, sys, time
before_termination = runpy.run_path(sys.argv[1])["before_termination"]  # without importing torch

def act():
    print("acted", flush=True)

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    print("went on", flush=True)
"""
IN_PYTHON = "with before_termination(act): terminate()"
IN_C = """
with before_termination(act):
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    libc.pthread_mutex_lock(mutex)
    print("waits", flush=True)
    libc.pthread_mutex_lock(mutex)  # for ever, and no signal handler of Python's runs
"""
AFTERWARDS = "with before_termination(act): pass\nterminate()"
TAKEN_OVER = """
with before_termination(act):
    signal.signal(signal.SIGTERM, lambda *_: print("theirs", flush=True))
    terminate()
"""
TAKEN_BEFORE = "signal.signal(signal.SIGTERM, lambda *_: None)\nwith before_termination(act): terminate()"
FORKED = """
with before_termination(act):
    child = os.fork()
    if not child:
        time.sleep(60)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    time.sleep(0.5)
    print("went on", flush=True)
"""


@pytest.mark.parametrize(
    ("program", "said", "status"),
    [
        (IN_PYTHON, ["acted"], 143),
        (IN_C, ["waits", "acted"], 143),
        (AFTERWARDS, [], -signal.SIGTERM),
        (TAKEN_OVER, ["theirs", "went on"], 0),
        (TAKEN_BEFORE, ["went on"], 0),
        (FORKED, ["went on"], 0),
    ],
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")
def test_a_termination(program: str, said: list[str], status: int) -> None:
    command = [sys.executable, "-c", BEGIN + program, str(Path(termination.__file__))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line == "waits\n":
                process.terminate()
    assert (lines, process.returncode) == (said, status)
