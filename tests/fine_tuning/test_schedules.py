"""The learning rate over a run."""

from __future__ import annotations

import pytest
import torch

from constrained_diffusion.fine_tuning.schedules import WarmupStableDecay


def rates(total: int, **settings: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = WarmupStableDecay(optimizer, total, **settings)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_up_level_and_down_to_zero() -> None:
    expected = [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4, 0.0]
    assert rates(12, warmup_steps=4, decay_steps=5) == pytest.approx(expected)


def test_no_phases_is_constant() -> None:
    assert rates(5, warmup_steps=0, decay_steps=0) == pytest.approx([2.0] * 5 + [0.0])


def test_the_middle_does_not_know_the_total() -> None:
    assert rates(40, warmup_steps=5, decay_steps=10)[:20] == rates(60, warmup_steps=5, decay_steps=10)[:20]


def test_it_stays_at_zero_beyond_the_end() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = WarmupStableDecay(optimizer, 3, warmup_steps=1, decay_steps=2)
    for _ in range(6):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == [0.0]
