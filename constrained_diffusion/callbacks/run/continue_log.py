"""A resumed run goes on in the same CSV file, without a gap or a repeated step."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from constrained_diffusion.runtime.files import write_bytes

ROW = "last_row"  # key in a checkpoint
Rows = list[tuple[int, dict[str, float]]]


class KeepLog(Callback):
    """Lets every checkpoint find the log of all steps that it holds, whatever a kill does to the log itself.

    Before a checkpoint is written, the loggers' rows go to the disk and `metrics.csv` is copied to
    `checkpoints/metrics.csv`. A checkpoint at the end of a step is written before Lightning logs that step, so its row
    is put in the checkpoint.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if (log := getattr(pl_module, "step_log", None)) is not None:
            log.write(trainer)
        often = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if often and trainer.global_step % often == 0:
            # What validations logged stays among the logged metrics; they have rows of their own.
            rows = ((k, float(v)) for k, v in trainer.logged_metrics.items() if not k.startswith("val/"))
            step = {k: v for k, v in rows if k != "epoch"} | ({} if log is None else log.read().values)
            checkpoint[ROW] = {**step, "epoch": trainer.current_epoch} if step else {}
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
            if isinstance(logger, CSVLogger) and (file := Path(logger.log_dir) / "metrics.csv").is_file():
                copy = copy_of(file)
                copy.parent.mkdir(exist_ok=True)
                write_bytes(copy, file.read_bytes())


class ContinueLog(Callback):
    """Keeps the rows of an earlier part of the run; Lightning's CSVLogger would start the file anew.

    Rows of steps that the checkpoint does not hold are left out: they are about to be made again. If the fit takes no
    step, because it fails or because it was finished before, the file is put back as it was.

    Args:
        metrics: the run's `metrics.csv`, read at once, before the logger is used.

    Raises:
        ValueError: it is damaged otherwise than by being cut off.
    """

    def __init__(self, metrics: Path) -> None:
        self.metrics = metrics
        self.content = metrics.read_bytes() if metrics.is_file() else b""
        copy = copy_of(metrics)
        self.copied = copy.read_bytes() if copy.is_file() else b""
        for content, file in ((self.content, metrics), (self.copied, copy)):
            rows(content.decode(errors="replace"), file)  # damage is told now, while the file is still there
        self.last_row: dict[str, float] = {}
        self._continued = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.last_row = checkpoint.get(ROW, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._continued = True
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and trainer.is_global_zero and _is_of(logger, self.metrics):
                for step, values in earlier_rows(self.content, self.copied, trainer.global_step, self.last_row):
                    logger.log_metrics({**values}, step)
                logger.save()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._put_back(trainer)

    def _put_back(self, trainer: Trainer) -> None:
        if self.content and not self._continued and trainer.is_global_zero:
            write_bytes(self.metrics, self.content)


def _is_of(logger: CSVLogger, metrics: Path) -> bool:
    """Whether this logger writes that file, and is no second one of the user's."""
    return (Path(logger.log_dir) / metrics.name).resolve() == metrics.resolve()


def copy_of(metrics: Path) -> Path:
    """Return where the copy lies that goes with the checkpoints."""
    return metrics.parent / "checkpoints" / metrics.name


def earlier_rows(content: bytes, copied: bytes, steps: int, last_row: dict[str, float]) -> Rows:
    """Return the rows of the first `steps` steps, each once.

    Args:
        content: what the log holds now; a kill may have cut it, or all of it, off.
        copied: what it held when the checkpoint was written.
        steps: how many steps the checkpoint holds.
        last_row: the values of the last of them.
    """
    now, then = rows(content.decode(errors="replace")), rows(copied.decode(errors="replace"))
    found = now if now[: len(then)] == then else then
    found = [(step, values) for step, values in found if step < steps]
    logged = any(step == steps - 1 and values.keys() & last_row.keys() - {"epoch"} for step, values in found)
    return found if logged or not last_row else [*found, (steps - 1, last_row)]


def rows(text: str, source: object = "metrics.csv") -> Rows:
    """Return step and values of each row of a `metrics.csv`; a last row that was cut off is left out.

    Raises:
        ValueError: something else than numbers stands in `source`.

    >>> rows(chr(10).join(["epoch,loss,step", "0,0.5,3", "0,,"]))
    [(3, {'epoch': 0, 'loss': 0.5})]
    """
    whole = text[: text.rfind("\n") + 1]
    read = csv.DictReader(io.StringIO(whole))
    try:
        return [
            (int(row["step"]), {k: _number(v) for k, v in row.items() if v and k != "step"})
            for row in read
            if row.get("step")
        ]
    except (csv.Error, ValueError, AttributeError) as error:  # AttributeError: a row is longer than the head
        raise ValueError(
            f"'{source}' is no log of a fit ({error}): expected numbers in as many columns as its first line has; mend "
            "the line, or take the file out."
        ) from error


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)  # so that it is written again as it stood there
