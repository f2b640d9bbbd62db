"""What is noted on the device is read once, at log steps, and written under its name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from constrained_diffusion.fine_tuning.step_log import StepLog


class Logger:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))


def trainer(**settings: Any) -> Any:
    given = {
        "global_step": 0,
        "log_every_n_steps": 2,
        "loggers": [Logger()],
        "callback_metrics": {},
        "current_epoch": 0,
    }
    return SimpleNamespace(**{**given, **settings})


def test_log_steps_are_written_once_and_others_not() -> None:
    log, at = StepLog(), trainer()
    log.start(0)
    for step in range(1, 6):
        for micro_batch in range(2):  # the second one makes the step
            log.note(torch.tensor(float(step)), {"loss": torch.tensor(10.0 * step + micro_batch)})
            at.global_step = step - 1 + micro_batch
            log.write(at)
            log.write(at)
    assert at.loggers[0].rows == [(1, {"loss": 21.0, "epoch": 0}), (3, {"loss": 41.0, "epoch": 0})]
    assert float(at.callback_metrics["loss"]) == 41.0


def test_a_resumed_fit_does_not_write_the_step_it_starts_from() -> None:
    log, at = StepLog(), trainer(global_step=4)
    log.start(4)
    log.note(torch.tensor(1.0), {"loss": torch.tensor(1.0)})
    log.write(at)
    assert not at.loggers[0].rows


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_loss_is_remembered_until_the_next_fit(broken: float) -> None:
    log = StepLog()
    log.start(0)
    log.note(torch.tensor(1.0), {})
    assert log.read().finite
    log.note(torch.tensor(broken), {"loss": torch.tensor(broken)})
    log.note(torch.tensor(1.0), {"loss": torch.tensor(2.0)})
    assert log.read() == ({"loss": 2.0}, False)
    log.start(0)
    log.note(torch.tensor(1.0), {})
    assert log.read().finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_what_they_were_on_the_device(dtype: torch.dtype) -> None:
    log, value = StepLog(), torch.tensor(1 / 3, dtype=dtype)
    log.note(value, {"one": value, "other": torch.tensor(7)})
    assert log.read().values == {"one": float(value), "other": 7.0}
