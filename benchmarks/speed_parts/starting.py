"""Seconds until the package is imported, and until the command line answers; each in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from speed_parts.table import Row, row_of

ADDED = """
import time, torch, lightning
start = time.perf_counter()
import constrained_diffusion
print(time.perf_counter() - start)
"""
IMPORTS = "import torch, lightning, constrained_diffusion"
HELP = "from constrained_diffusion.cli import main; main(['fit', '--help'])"


def seconds(program: str) -> float:
    """Return how long a process runs `program`."""
    start = time.perf_counter()
    _run(program)
    return time.perf_counter() - start


def import_rows(given: Any) -> Iterator[Row]:
    """Yield what `import constrained_diffusion` adds to importing torch and lightning."""
    added = [float(_run(ADDED)) for _ in range(given.starts)]
    yield row_of("import constrained_diffusion, after torch and lightning", added, unit="s", at_most=0.5)


def help_rows(given: Any) -> Iterator[Row]:
    """Yield `lightning fit --help` over the import, alternating."""
    imports, ratios = [], []
    seconds(HELP)  # both find the files in memory
    for _ in range(given.starts):
        imports.append(seconds(IMPORTS))
        ratios.append(seconds(HELP) / imports[-1])
    yield row_of("import torch, lightning, constrained_diffusion", imports, unit="s")
    yield row_of("lightning fit --help / that import", ratios, at_most=1.5, note=f"{given.starts} pairs")


def _run(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"a started process failed: {result.stderr.strip().splitlines()[-1:]}")
    return result.stdout
