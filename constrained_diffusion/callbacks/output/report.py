"""The callback that writes a run's `report.html`."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from constrained_diffusion.reports.run_report import read_json, write_report
from constrained_diffusion.runtime.run_folder import RunFolder


class Report(Callback):
    """Writes the run's `report.html` when a fit and when a test ends, and prints where it lies.

    The run is `trainer.default_root_dir`. Place it after what writes grids, `status.json` and `results.json`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # what an earlier `test` wrote is read at the end: damage is reported now
            read_json(RunFolder.of(trainer).results)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            print(f"report: {write_report(RunFolder.of(trainer).path)}")
