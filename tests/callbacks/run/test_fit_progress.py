"""What the bar and the lines of a fit show, and of which step."""

from __future__ import annotations

import logging
import re
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from constrained_diffusion.callbacks import FitLines, FitProgress
from constrained_diffusion.callbacks.run import pace
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion


class Noted(Callback):
    """The loss of each step, and what the bar said after it."""

    def __init__(self, bar: FitProgress) -> None:
        self.bar = bar
        self.losses: list[float] = []
        self.shown: list[Any] = []
        self.tasks: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.bar._bar is not None
        self.losses.append(float(outputs["loss"]))
        self.shown.append(self.bar.figures.get("loss"))
        self.tasks.append(self.bar._bar.tasks[0])

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        assert self.bar._bar is None  # so that what is said now stays


def make(tiny_denoiser: Any, too_bright: Any) -> ConstrainedDiffusion:
    return ConstrainedDiffusion(tiny_denoiser(), too_bright(), optimizer=partial(torch.optim.SGD, lr=1e-3))


def test_the_bar_shows_the_last_log_step(tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any) -> None:
    bar = FitProgress()
    noted = Noted(bar)
    module = make(tiny_denoiser, too_bright)
    fit(module, tiny_data(), [bar, noted], enable_progress_bar=True, log_every_n_steps=2, max_epochs=1)
    assert noted.shown == [None, noted.losses[1], noted.losses[1], noted.losses[3]]


def test_one_bar_for_the_whole_fit_with_epochs_from_1(
    tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any
) -> None:
    bar = FitProgress()
    noted = Noted(bar)
    module = make(tiny_denoiser, too_bright)
    fit(module, tiny_data(), [bar, noted], enable_progress_bar=True, log_every_n_steps=1, max_epochs=2)
    last = noted.tasks[-1]
    assert len({id(task) for task in noted.tasks}) == 1
    assert (last.completed, last.total, last.description) == (8, 8, "epoch 2 of 2")
    assert last.fields["figures"].startswith("violating ")
    assert last.fields["left"] == "0:00 left"


def test_without_a_terminal_there_are_lines(
    tiny_denoiser: Any,
    too_bright: Any,
    tiny_data: Any,
    fit: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "SHORTEST_SILENCE", 0.0)
    with caplog.at_level(logging.INFO):
        fit(make(tiny_denoiser, too_bright), tiny_data(), [FitLines()], enable_progress_bar=True, log_every_n_steps=1)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    assert len(said) == 8
    figures = r"violating [\d.e-]+, P [\d.e-]+, loss [\d.e-]+"
    assert re.fullmatch(rf"step 1 of 8, epoch 1 of 2, {figures}, \d+:\d\d left", said[0])
    assert re.match(rf"step 8 of 8, epoch 2 of 2, {figures}, .*0:00 left", said[-1])
