"""Time left, when a log hears of a fit, and which figures come first."""

from __future__ import annotations

import pytest
import torch

from constrained_diffusion.callbacks.run.pace import Pace, figures


def test_of_several_constraints_the_worst_is_shown_and_the_constraint_comes_first() -> None:
    terms = {"loss/total": 3.0, "penalty/a": 0.5, "penalty/b": 0.25, "violation_rate/a": 0.1, "violation_rate/b": 0.2}
    shown = figures({name: torch.tensor(value) for name, value in terms.items()})
    assert shown == pytest.approx({"violating": 0.2, "P": 0.5, "loss": 3.0})
    assert list(shown) == ["violating", "P", "loss"]


def test_pretraining_shows_the_loss_alone() -> None:
    assert figures({"loss/total": torch.tensor(1.5), "loss/diffusion": torch.tensor(1.0)}) == {"loss": 1.5}


def test_the_time_left_counts_the_steps_of_this_part_alone() -> None:
    resumed = Pace(began=50.0, first=100, total=300)
    assert resumed.seconds_left(100, now=60.0) is None
    assert resumed.seconds_left(150, now=60.0) == 30.0  # 50 steps took 10 s, 150 are left
    assert resumed.seconds_left(300, now=60.0) == 0.0
    assert Pace(0.0, 0, float("inf")).seconds_left(10, now=1.0) is None


def lines(pace: Pace, seconds_per_step: float) -> list[int]:
    said, said_at, found = pace.first, pace.began, []
    for step in range(pace.first + 1, int(pace.total) + 1):
        now = pace.began + (step - pace.first) * seconds_per_step
        if pace.line_is_due(step, now, said, said_at):
            found.append(step)
            said, said_at = step, now
    return found


def test_a_line_at_each_tenth() -> None:
    assert lines(Pace(5.0, 0, 300), 0.1) == list(range(30, 301, 30))
    assert lines(Pace(5.0, 150, 300), 0.1) == list(range(180, 301, 30))
    assert lines(Pace(5.0, 0, 4), 0.01) == []  # over before anybody looks


def test_slow_steps_are_told_of_every_half_minute_and_more_rarely_in_a_long_fit() -> None:
    assert lines(Pace(0.0, 0, 10), 100.0) == list(range(1, 11))
    assert lines(Pace(0.0, 0, 1000), 1.0)[:4] == [30, 60, 90, 100]
    assert len(lines(Pace(0.0, 0, 86_400), 1.0)) < 150
