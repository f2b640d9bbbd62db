"""What the bar of a fit shows, and of which step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from constrained_diffusion.callbacks import FitProgress
from constrained_diffusion.callbacks.run.fit_progress import figures
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion


def test_of_several_constraints_the_worst_is_shown() -> None:
    terms = {"loss/total": 3.0, "penalty/a": 0.5, "penalty/b": 0.25, "violation_rate/a": 0.1, "violation_rate/b": 0.2}
    shown = figures({name: torch.tensor(value) for name, value in terms.items()})
    assert shown == pytest.approx({"loss": 3.0, "P": 0.5, "violating": 0.2})


def test_pretraining_shows_the_loss_alone() -> None:
    assert figures({"loss/total": torch.tensor(1.5), "loss/diffusion": torch.tensor(1.0)}) == {"loss": 1.5}


class Noted(Callback):
    """The loss of each step, and what the bar said after it."""

    def __init__(self, bar: FitProgress) -> None:
        self.bar = bar
        self.losses: list[float] = []
        self.shown: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.shown.append(self.bar.get_metrics(trainer, pl_module).get("loss"))


def test_the_bar_shows_the_last_log_step(tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any) -> None:
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), optimizer=partial(torch.optim.SGD, lr=1e-3))
    bar = FitProgress()
    noted = Noted(bar)
    fit(module, tiny_data(), [bar, noted], enable_progress_bar=True, log_every_n_steps=2, max_epochs=1)
    assert noted.shown == [None, noted.losses[1], noted.losses[1], noted.losses[3]]
