"""`metrics.csv` of a resumed fit: every step once, and the file as it was where no step is taken."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from constrained_diffusion.callbacks import ContinueLog, KeepLog, LastCheckpoint
from constrained_diffusion.callbacks.run.continue_log import rows
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion


@pytest.fixture
def part(tiny_denoiser: Any, tiny_data: Any, fit: Any, tmp_path: Path) -> Any:
    """`part(resume, every, denoiser, ...)`: one part of a run, as the command line does it; an epoch has 4 steps."""

    def run(
        resume: bool = False, every: int | None = None, denoiser: Any = None, callbacks: Any = (), **settings: Any
    ) -> None:
        checkpoint = str(tmp_path / "checkpoints" / "last.ckpt") if resume else None
        logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=3)
        continued = [ContinueLog(tmp_path / "metrics.csv")] if resume else []
        callbacks = [*continued, KeepLog(), LastCheckpoint(every, 0), *callbacks]
        fixed = {"logger": logger, "log_every_n_steps": 1, "enable_checkpointing": True}
        fit(ConstrainedDiffusion(denoiser or tiny_denoiser()), tiny_data(), callbacks, checkpoint, **fixed, **settings)

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def steps(file: Path, column: str) -> list[int]:
    with file.open(newline="") as opened:
        return [int(row["step"]) for row in csv.DictReader(opened) if row[column]]


pytestmark = [
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


def test_resumed_at_the_end_of_an_epoch(part: Any, file: Path) -> None:
    part(max_epochs=2)
    before = rows(file.read_text())
    part(resume=True, max_epochs=3)
    assert rows(file.read_text())[: len(before)] == before
    assert steps(file, "loss/total") == list(range(12))
    assert steps(file, "val/diffusion_loss") == [3, 7, 11]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("every", [3, 4])
def test_rows_after_the_checkpoint_are_made_again(part: Any, file: Path, every: int) -> None:
    """The first part wrote steps 0 to 9, and its last checkpoint holds 9 or 8 of them."""
    part(every=every, max_steps=10, max_epochs=-1)
    assert steps(file, "loss/total") == list(range(10))
    part(resume=True, every=every, max_steps=12, max_epochs=-1)
    assert steps(file, "loss/total") == list(range(12))
    assert steps(file, "val/diffusion_loss") == [3, 7, 11]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("stops", [(1, 2, 3), (4, 5, 8), (3, 9)])
@pytest.mark.parametrize("every", [None, 1, 3, 4])
@pytest.mark.parametrize("length", [{"max_epochs": 3}, {"max_steps": 12, "max_epochs": -1}])
def test_nothing_is_missing_wherever_a_fit_breaks_off(
    part: Any, file: Path, tmp_path: Path, same: Any, length: dict[str, int], every: int | None, stops: tuple[int, ...]
) -> None:
    """It breaks off before the steps `stops`, and in the validation that comes before the last of them, if one does."""
    last = tmp_path / "checkpoints" / "last.ckpt"

    def go_on(*break_off: Any) -> None:
        part(resume=last.exists(), every=every, callbacks=break_off, **length)

    for step in stops:
        with pytest.raises(BrokenOffError):
            go_on(BreakOff(step, validating=step == stops[-1]))
    go_on()
    assert steps(file, "loss/total") == list(range(12))
    assert steps(file, "val/diffusion_loss") == [3, 7, 11]
    log, state = file.read_bytes(), torch.load(last, weights_only=True)
    for path in (last, file, last.with_name(file.name)):
        path.unlink()
    go_on()
    assert file.read_bytes() == log
    same(torch.load(last, weights_only=True)["state_dict"], state["state_dict"])


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_validations_between_the_ends_of_epochs_are_not_skipped(part: Any, file: Path) -> None:
    """Every 6 of the 4 batches of an epoch: a validation at step 6, which a checkpoint of that step waits for."""
    often = {"val_check_interval": 6, "check_val_every_n_epoch": None, "max_epochs": 3, "every": 1}
    with pytest.raises(BrokenOffError):
        part(callbacks=[BreakOff(6, validating=True)], **often)
    part(resume=True, **often)
    assert steps(file, "val/diffusion_loss") == [5, 11]
    assert steps(file, "loss/total") == list(range(12))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_fit_that_ends_within_an_epoch_goes_on_there(part: Any, file: Path) -> None:
    part(max_steps=6, max_epochs=-1)
    part(resume=True, max_steps=12, max_epochs=-1)
    assert steps(file, "val/diffusion_loss") == [3, 7, 11]
    assert steps(file, "loss/total") == list(range(12))


class BrokenOffError(Exception):
    pass


class BreakOff(Callback):
    """Ends a fit as a kill would: nothing is written any more."""

    def __init__(self, step: int, validating: bool) -> None:
        self.step, self.validating = step, validating

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step >= self.step:
            raise BrokenOffError

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        if self.validating and trainer.global_step >= self.step:
            raise BrokenOffError


def test_a_finished_fit_is_left_as_it_is(part: Any, file: Path) -> None:
    part(max_epochs=1)
    before = file.read_bytes()
    part(resume=True, max_epochs=1)
    assert file.read_bytes() == before


def test_a_fit_that_fails_before_its_first_step_leaves_the_file(part: Any, file: Path, tiny_denoiser: Any) -> None:
    part(max_epochs=1)
    before = file.read_bytes()
    wider = tiny_denoiser()
    wider.network.last.weight.data = wider.network.last.weight.data.repeat(1, 2, 1, 1)
    with pytest.raises(ValueError, match="of another model"):
        part(resume=True, denoiser=wider, max_epochs=2)
    assert file.read_bytes() == before


def test_without_an_earlier_file_there_is_nothing_to_keep(tmp_path: Path, part: Any, file: Path) -> None:
    part(max_epochs=1)
    file.unlink()
    (tmp_path / "checkpoints" / "metrics.csv").unlink()
    part(resume=True, max_epochs=2)
    assert steps(file, "loss/total") == [3, 4, 5, 6, 7]  # the last row is in the checkpoint


def test_a_log_that_a_kill_cut_off_is_mended_by_its_copy(tmp_path: Path, part: Any, file: Path) -> None:
    part(max_epochs=2)
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 3])
    part(resume=True, max_epochs=3)
    assert steps(file, "loss/total") == list(range(12))
    assert file.read_text().startswith(whole)


def test_rows_keep_what_was_written() -> None:
    text = "epoch,a,step,b\n0,1.5,0,\n0,,0,2\n1,nan,3,\n1,0.2"
    read = rows(text)
    assert [step for step, _ in read] == [0, 0, 3]
    assert read[0][1] == {"epoch": 0.0, "a": 1.5}
    assert read[1][1] == {"epoch": 0.0, "b": 2.0}
    assert read[2][1]["a"] != read[2][1]["a"]
    assert rows("") == []
