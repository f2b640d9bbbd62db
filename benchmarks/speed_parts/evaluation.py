"""The share of a fit that its validations take, as its own `status.json` has it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speed_parts.table import Row

FIT = "import sys; from constrained_diffusion.cli import main; main(sys.argv[1:])"


def rows(given: Any) -> Iterator[Row]:
    """Yield the share in a fit of the shipped `mnist.yaml`, which validates every `epochs` epochs, twice."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = {
            "max_epochs": 2 * given.epochs,
            "check_val_every_n_epoch": given.epochs,
            "default_root_dir": folder,
            "enable_progress_bar": False,
        }
        more = [f"--trainer.{name}={value}" for name, value in trainer.items()]
        more += [f"--data.init_args.{value}" for value in given.data]
        command = [sys.executable, "-c", FIT, "fit", "--config", "mnist.yaml", *more]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            yield Row("evaluation's share of a fit", None, note=f"the fit failed: {result.stderr.splitlines()[-1:]}")
            return
        status = json.loads(next(Path(folder).rglob("status.json")).read_text())
    seconds, evaluating = status["seconds"], status["evaluation_seconds"]
    note = f"{evaluating:.0f} of {seconds:.0f} s, drawing its training set too; mnist.yaml, {2 * given.epochs} epochs"
    yield Row("evaluation's share of a fit", evaluating / seconds, unit="", note=note)
