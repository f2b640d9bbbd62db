"""`last` and `best_feasible`: which steps they hold, and that nothing worse replaces them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from constrained_diffusion.callbacks import BestFeasible, FitStatus, LastCheckpoint
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")  # of the part before, in a resumed fit
GOOD, BAD = 0.1, 0.9  # brightness
Steps = Callable[[], dict[str, int]]


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    """The optimiser step of each checkpoint of the run; an epoch has 4."""

    def read() -> dict[str, int]:
        files = sorted((tmp_path / "checkpoints").glob("*"))
        return {path.name: int(torch.load(path, weights_only=True)["global_step"]) for path in files}

    return read


@pytest.fixture
def plain(tiny_denoiser: Any) -> ConstrainedDiffusion:
    return ConstrainedDiffusion(tiny_denoiser(), optimizer=partial(torch.optim.SGD, lr=0.01))


def test_last_is_the_end_of_the_last_epoch(plain: Any, tiny_data: Any, fit: Any, steps: Steps) -> None:
    fit(plain, tiny_data(), [LastCheckpoint(every_n_seconds=0)], max_epochs=3, enable_checkpointing=True)
    assert steps() == {"last.ckpt": 12}


class Ended(Callback):
    """Ends a fit by an error after eight steps, two epochs."""

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 8:
            raise ZeroDivisionError


@pytest.mark.parametrize(("seconds", "expected"), [(0, {"last.ckpt": 8}), (1e9, {})])
def test_last_waits_until_the_time_is_up(
    seconds: float, expected: dict[str, int], plain: Any, tiny_data: Any, fit: Any, steps: Steps
) -> None:
    last = LastCheckpoint(every_n_seconds=seconds)
    with pytest.raises(ZeroDivisionError):
        fit(plain, tiny_data(), [last, Ended()], max_epochs=3, enable_checkpointing=True)
    assert steps() == expected


def test_a_negative_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every_n_seconds is a time of 0 or more, got -1"):
        LastCheckpoint(every_n_seconds=-1.0)


def test_last_counts_steps_where_asked(plain: Any, tiny_data: Any, fit: Any, steps: Steps) -> None:
    fit(
        plain,
        tiny_data(),
        [LastCheckpoint(every_n_train_steps=3)],
        max_steps=8,
        max_epochs=-1,
        enable_checkpointing=True,
    )
    assert steps() == {"last.ckpt": 8}  # the end


def test_last_between_the_ends_where_asked(plain: Any, tiny_data: Any, fit: Any, steps: Steps) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(plain, tiny_data(), [LastCheckpoint(3), Ended()], max_epochs=3, enable_checkpointing=True)
    assert steps() == {"last.ckpt": 6}


def test_last_has_seen_the_validation_of_its_epoch(scripted: Any, tiny_data: Any, fit: Any, tmp_path: Path) -> None:
    fit(
        scripted([(1.0, GOOD)]),
        tiny_data(),
        [FitStatus(), LastCheckpoint(every_n_seconds=0)],
        max_epochs=1,
        enable_checkpointing=True,
    )
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["FitStatus"]
    assert saved["last"]["val/diffusion_loss"] == 1.0
    assert saved["last"]["step"] == 4


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ([(3.0, GOOD), (1.0, GOOD), (2.0, GOOD)], {"best_feasible.ckpt": 8}),
        ([(3.0, GOOD), (1.0, BAD), (2.0, GOOD), (0.5, BAD)], {"best_feasible.ckpt": 12}),  # lower ones violate
        ([(3.0, BAD), (1.0, BAD)], {}),
        ([(1.0, GOOD), (1.0, GOOD)], {"best_feasible.ckpt": 4}),
    ],
)
def test_best_is_the_lowest_loss_among_the_feasible(
    scripted: Any, tiny_data: Any, fit: Any, steps: Steps, script: list[tuple[float, float]], expected: dict[str, int]
) -> None:
    fit(scripted(script), tiny_data(), [BestFeasible()], max_epochs=len(script), enable_checkpointing=True)
    assert steps() == expected


def test_feasible_means_the_upper_bound(scripted: Any, tiny_data: Any, fit: Any, steps: Steps) -> None:
    """0 of 8 has the upper 95 % bound 1 - 0.05^(1/8) = 31.2 %."""
    fit(
        scripted([(1.0, GOOD)], max_violation_rate=0.31),
        tiny_data(),
        [BestFeasible()],
        max_epochs=1,
        enable_checkpointing=True,
    )
    assert steps() == {}
    fit(
        scripted([(1.0, GOOD)], max_violation_rate=0.32),
        tiny_data(),
        [BestFeasible()],
        max_epochs=1,
        enable_checkpointing=True,
    )
    assert steps() == {"best_feasible.ckpt": 4}


def test_without_samples_nothing_is_feasible(scripted: Any, tiny_data: Any, fit: Any, steps: Steps) -> None:
    fit(scripted([(1.0, GOOD)]), tiny_data(val_samples=0), [BestFeasible()], max_epochs=1, enable_checkpointing=True)
    assert steps() == {}


def test_a_resumed_fit_remembers_what_was_best(
    scripted: Any, tiny_data: Any, fit: Any, steps: Steps, tmp_path: Path
) -> None:
    script = [(1.0, GOOD), (2.0, GOOD), (0.5, GOOD)]
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    settings = {"enable_checkpointing": True}
    fit(scripted(script), tiny_data(), [LastCheckpoint(every_n_seconds=0), BestFeasible()], max_epochs=1, **settings)
    fit(
        scripted(script),
        tiny_data(),
        [LastCheckpoint(every_n_seconds=0), BestFeasible()],
        last,
        max_epochs=2,
        **settings,
    )
    assert steps() == {"best_feasible.ckpt": 4, "last.ckpt": 8}
    fit(
        scripted(script),
        tiny_data(),
        [LastCheckpoint(every_n_seconds=0), BestFeasible()],
        last,
        max_epochs=3,
        **settings,
    )
    assert steps() == {"best_feasible.ckpt": 12, "last.ckpt": 12}
