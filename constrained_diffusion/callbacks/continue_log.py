"""A resumed run goes on in the same CSV file, without a gap or a repeated step."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger


class ContinueLog(Callback):
    """Keeps the rows of an earlier part of the run; Lightning's CSVLogger would start the file anew.

    Args:
        rows: what `read_rows` found before the logger was made.
    """

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows = rows

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and trainer.is_global_zero:
                for row in self.rows:
                    step = int(row["step"])
                    if step < trainer.global_step:
                        logger.log_metrics({k: float(v) for k, v in row.items() if v and k != "step"}, step)
                logger.save()


def read_rows(metrics: Path) -> list[dict[str, str]]:
    """Return the rows of a run's `metrics.csv`, none where there is no such file."""
    if not metrics.is_file():
        return []
    with metrics.open(newline="") as file:
        return list(csv.DictReader(file))
