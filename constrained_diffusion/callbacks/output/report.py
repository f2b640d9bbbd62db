"""The callback that writes a run's `report.html`."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from constrained_diffusion.reports.run_report import write_report


class Report(Callback):
    """Writes the run's `report.html` when a fit and when a test ends, and prints where it lies.

    The run is `trainer.default_root_dir`. Place it after what writes grids, `status.json` and `results.json`.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            print(f"report: {write_report(Path(trainer.default_root_dir))}")
