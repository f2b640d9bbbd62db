"""`results.json`: what `test` measured, and what produced it."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from constrained_diffusion.reports.table import before_after_table
from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.distribution import DISTRIBUTION
from constrained_diffusion.runtime.files import rename_existing, write_json
from constrained_diffusion.runtime.run_folder import RunFolder

PACKAGES = (DISTRIBUTION, "torch", "lightning", "diffusers", "torchmetrics", "jsonargparse")


class Results(Callback):
    """Writes `results.json` into the run's folder after `test` and prints the before/after table.

    The results of an earlier `test` of the run are kept as `results-1.json`, `results-2.json`, ..

    Args:
        config: the name of the run's config, as it shall stand in the file.

    Raises:
        ValueError: the fit's `status.json` is damaged; reported before anything is sampled.
    """

    def __init__(self, config: str = "") -> None:
        self.config = config
        self._started = time.monotonic()
        self._fit: dict[str, Any] = {}  # what `status.json` says

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "test":
            self._fit = _read(RunFolder.of(trainer).status)

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._started = time.monotonic()

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        fit = self._fit
        first = getattr(trainer.datamodule, "first_eval_seed", 0)  # type: ignore[attr-defined]
        results = {
            **pl_module.evaluator.results,
            "status": fit.get("status", "not fitted"),
            "cost": fit.get("cost", ""),
            **({} if pl_module.evaluation is None else pl_module.evaluation.declared()),
            "seconds": {"fit": fit.get("seconds"), "test": time.monotonic() - self._started},
            "config": self.config,
            "sampler": pl_module.evaluator.sampler_settings,
            "precision": str(trainer.precision),
            "seeds": [first, first + pl_module.evaluator.results["after"]["n"] - 1],
            "versions": versions(),
            "weights_sha256": pl_module.networks.weights_sha256(),
        }
        rename_existing(RunFolder.of(trainer).results)
        write_json(RunFolder.of(trainer).results, results)
        print(before_after_table(results))


def versions() -> dict[str, str]:
    """Return the installed version of each package that a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return found


def _read(path: Path) -> dict[str, Any]:
    return untrusted.read_json(path) if path.is_file() else {}
