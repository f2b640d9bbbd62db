"""A resumed run goes on in the same CSV file, without a gap or a repeated step."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger


class ContinueLog(Callback):
    """Keeps the rows of an earlier part of the run; Lightning's CSVLogger would start the file anew.

    Rows of steps that the checkpoint does not hold are left out: they are about to be made again. If the fit takes no
    step, because it fails or because it was finished before, the file is put back as it was.

    Args:
        metrics: the run's `metrics.csv`, read at once, before the logger is used.
    """

    def __init__(self, metrics: Path) -> None:
        self.metrics = metrics
        self.content = metrics.read_bytes() if metrics.is_file() else b""
        self._continued = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._continued = True
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and trainer.is_global_zero:
                for step, values in rows(self.content.decode()):
                    if step < trainer.global_step:
                        logger.log_metrics({**values}, step)
                logger.save()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._put_back(trainer)

    def _put_back(self, trainer: Trainer) -> None:
        if self.content and not self._continued and trainer.is_global_zero:
            self.metrics.write_bytes(self.content)


def rows(text: str) -> list[tuple[int, dict[str, float]]]:
    """Return step and values of each row of a `metrics.csv`; a last row that was cut off is left out.

    >>> rows(chr(10).join(["epoch,loss,step", "0,0.5,3", "0,,"]))
    [(3, {'epoch': 0.0, 'loss': 0.5})]
    """
    read = csv.DictReader(io.StringIO(text))
    whole = [row for row in read if row.get("step")]
    return [(int(row["step"]), {k: float(v) for k, v in row.items() if v and k != "step"}) for row in whole]
