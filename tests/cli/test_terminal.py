"""What stands on an 80-column terminal after a fit, and after a test."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

WIDTH = 80


def screen(output: str) -> str:
    """Return what a terminal of `WIDTH` columns shows of `output`, every row padded; it knows rich's cursor moves."""
    rows: list[list[str]] = [[]]
    y = x = 0
    for code, count, kind, char in re.findall(r"(\x1b\[[?]?(\d*)(?:;\d*)*([A-Za-z]))|([^\x1b])", output):
        if kind == "A":
            y = max(0, y - int(count or 1))
        elif kind == "K":
            rows[y] = [] if count == "2" else rows[y][:x]
        elif code:  # colours, and the cursor's own look
            continue
        elif char == "\r":
            x = 0
        elif char == "\n":
            y += 1
        else:
            if x == WIDTH:
                y, x = y + 1, 0
            rows += [[] for _ in range(y + 1 - len(rows))]
            rows[y] += [" "] * (x + 1 - len(rows[y]))
            rows[y][x] = char
            x += 1
        rows += [[] for _ in range(y + 1 - len(rows))]
    return "".join("".join(row).ljust(WIDTH) for row in rows)


def test_the_emulator_of_a_terminal() -> None:
    shown = screen("first\r\nsecond\r\n\x1b[1A\x1b[2K\x1b[31mthird\x1b[0m\r\n" + 81 * "x")
    assert [shown[i : i + WIDTH].strip() for i in range(0, len(shown), WIDTH)] == ["first", "third", 80 * "x", "x"]


def in_terminal(folder: Path, *words: str) -> str:
    """Run a command with a pseudo-terminal for its output, and return what the terminal shows in the end."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "CI", "GITHUB_ACTIONS")},
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm",
        "COLUMNS": str(WIDTH),
        "CONSTRAINED_DIFFUSION_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "constrained_diffusion.cli", *words, "--config", "tiny.yaml"]
    written = b""
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=its, stderr=its, stdin=its) as process:
        os.close(its)
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # what Linux says when the last program has closed the terminal
                break
            if not read:
                break
            written += read
    os.close(ours)
    shown = screen(written.decode())
    assert process.returncode == 0, shown
    return shown


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_the_final_sentences_stand_whole(tmp_path: Path, tiny_config: str) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_config)
    shown = in_terminal(tmp_path, "fit")
    verdict = r"(in)?feasible: [^;]* of the EMA samples violate by own g \(upper 95 % bound [\d.]+ %, [^)]*\); \d+ s\."
    assert re.search(verdict, shown)
    assert re.search(r"the weights are in \S+/runs/tiny/1/export", shown.replace(" " * 20, ""))
    assert "PenaltyScheduler: infeasible on the training rows" in shown
    assert "lightning test --config tiny.yaml" in shown
    assert re.search(r"epoch 2 of 2 \S+ +4/4 +0:00 left violating", shown)
    shown = in_terminal(tmp_path, "test")
    assert re.search(r"(in)?feasible\. +By own g: .*\. +By the judge: .*\. *$", shown)
