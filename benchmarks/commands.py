"""A fit and its test, as a user runs them: commands in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml


def run(command: str, config: dict[str, Any], name: str, runs: Path) -> Path:
    """Run `command` in a process of its own; return the folder of the run.

    Args:
        command: "fit" or "test".
        config: of it.
        name: of the run.
        runs: the folder of runs.
    """
    config["trainer"]["default_root_dir"] = str(runs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        program = [sys.executable, "-m", "constrained_diffusion.cli", command, "--config", str(file)]
        subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    return runs / name / "latest"


def fit_and_test(config: dict[str, Any], name: str, runs: Path) -> dict[str, Any]:
    """Return the run's `results.json`, with `command_seconds` of the fit."""
    start = time.monotonic()
    run("fit", config, name, runs)
    seconds = time.monotonic() - start
    folder = run("test", config, name, runs)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return {**results, "command_seconds": seconds}
