"""One fit and its test, as a user runs them: two commands, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml


def fit_and_test(config: dict[str, Any], name: str, runs: Path) -> dict[str, Any]:
    """Return the run's `results.json`, with `command_seconds` of the fit.

    Args:
        config: of both commands.
        name: of the run.
        runs: the folder of runs.
    """
    config["trainer"]["default_root_dir"] = str(runs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        program = [sys.executable, "-m", "constrained_diffusion.cli"]
        start = time.monotonic()
        subprocess.run([*program, "fit", "--config", str(file)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        subprocess.run([*program, "test", "--config", str(file)], check=True, stdout=subprocess.DEVNULL)
    results: dict[str, Any] = json.loads((runs / name / "latest" / "results.json").read_text())
    return {**results, "command_seconds": seconds}
