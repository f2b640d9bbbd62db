"""What steers: the mean over rows, micro-batches and steps, against averages by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from constrained_diffusion.callbacks import ConstraintCallback

ROWS = [4, 0, 2, 6, 3]  # below T_phi, in each batch
P = [0.5, 0.0, 0.1, 0.4, 0.2]
MODULE: Any = SimpleNamespace(steering=SimpleNamespace(in_expectation=[False]))


class Recorder(ConstraintCallback):
    """Notes what it is handed."""

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.seen: list[float] = []

    def update(self, trainer: Any, steering: Any, violations: Any) -> None:
        self.seen.append(violations.penalty.item())
        assert violations.slack.item() == pytest.approx(-2 * violations.penalty.item())


def feed(callback: ConstraintCallback, batches: list[int], every: int = 1) -> None:
    """Hand over batches of a run, `every` of them to an optimiser step."""
    for i in batches:
        outputs = {
            "penalty": torch.tensor([P[i]], dtype=torch.float64),
            "slack": torch.tensor([-2 * P[i]], dtype=torch.float64),
            "penalty_rows": torch.tensor(ROWS[i]),
        }
        trainer: Any = SimpleNamespace(global_step=(i + 1) // every)
        callback.on_train_batch_end(trainer, MODULE, outputs, None, i)


def mean(batches: range) -> float:
    rows = sum(ROWS[i] for i in batches)
    return sum(ROWS[i] * P[i] for i in batches) / max(rows, 1)


def test_each_step_by_default() -> None:
    recorder = Recorder()
    feed(recorder, [0, 1, 2, 3, 4])
    assert recorder.seen == pytest.approx(P)


def test_micro_batches_count_by_their_rows() -> None:
    recorder = Recorder()
    feed(recorder, [0, 1, 2, 3], every=2)
    assert recorder.seen == pytest.approx([mean(range(2)), mean(range(2, 4))])
    assert recorder.micro_batches == 2


def test_a_window_is_the_mean_over_the_rows_of_its_steps() -> None:
    recorder = Recorder(smoothing=3)
    feed(recorder, [0, 1, 2, 3, 4])
    assert recorder.seen == pytest.approx([mean(range(max(0, i - 2), i + 1)) for i in range(5)])


def test_a_moving_average_by_hand() -> None:
    recorder, by_hand = Recorder(smoothing=0.75), [P[0]]
    feed(recorder, [0, 1, 2, 3, 4])
    for p in P[1:]:
        by_hand.append(0.75 * by_hand[-1] + 0.25 * p)
    assert recorder.seen == pytest.approx(by_hand)


def test_of_a_limit_on_a_mean_it_is_the_mean_that_is_squared() -> None:
    class Both(ConstraintCallback):
        def update(self, trainer: Any, module: Any, violations: Any) -> None:
            seen.append(violations.penalty.tolist())

    seen: list[list[float]] = []
    callback = Both(smoothing=2)
    for step, slack in enumerate([0.5, -0.3, 0.1]):  # the second constraint limits a mean: its P is relu(S)^2
        own = torch.tensor([slack, slack], dtype=torch.float64)
        outputs = {"penalty": own.clamp(min=0).square(), "slack": own, "penalty_rows": torch.tensor(4)}
        module, trainer = (
            SimpleNamespace(steering=SimpleNamespace(in_expectation=[False, True])),
            SimpleNamespace(global_step=step + 1),
        )
        callback.on_train_batch_end(trainer, module, outputs, None, step)  # type: ignore[arg-type]
    assert seen[1] == pytest.approx([0.125, 0.01])  # the mean of 0.25 and 0; the square of 0.1, the mean of both
    assert seen[2] == pytest.approx([0.005, 0.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.75, 3])
def test_what_is_remembered_is_in_the_checkpoint(smoothing: float) -> None:
    whole, first, second = Recorder(smoothing), Recorder(smoothing), Recorder(smoothing)
    feed(whole, [0, 1, 2, 3, 4])
    feed(first, [0, 1, 2])
    second.load_state_dict(first.state_dict())
    feed(second, [3, 4])
    assert first.seen + second.seen == whole.seen
