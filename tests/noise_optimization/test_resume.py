"""How rows stop, and that an interrupted run ends exactly as an uninterrupted one."""

from __future__ import annotations

import io
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from constrained_diffusion.noise_optimization import optimizer as module
from constrained_diffusion.noise_optimization.gradients import Exact, Hybrid1
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer, Run
from constrained_diffusion.noise_optimization.record import Record, stack
from constrained_diffusion.noise_optimization.regularizers import Unregularized
from constrained_diffusion.runtime.randomness import keyed_normal

SHAPE = (3, 4)
ADAM = partial(Adam, lr=0.05)


def start(*keys: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return keyed_normal([(key,) for key in keys], shape)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))


def nearness(x: Tensor) -> Tensor:
    return -(x - 0.5).square().sum(1)


def make(sample: Any = None, reward: Any = nearness, **settings: Any) -> NoiseOptimizer:
    return NoiseOptimizer(sample or network(), reward, **{"steps": 5, "permutations": 4, "optimizer": ADAM, **settings})


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """The state as it comes back from a file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def assert_same(ours: list[Record], theirs: list[Record]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.rewards, a.log_probabilities) == (b.rewards, b.log_probabilities)
        assert (a.best_step, a.stopped) == (b.best_step, b.stopped)
        for name in ("sample", "noise", "start"):
            assert torch.equal(getattr(a, name), getattr(b, name))


# ------------------------------------------------------------------------------------------------------------- stopping


def test_a_row_stops_where_its_reward_is_reached() -> None:
    unstopped = make(steps=8).run(start(1, 2))
    level = unstopped[1].rewards[3]  # the first row is worse at every step
    stopped = make(steps=8, stop_reward=level).run(start(1, 2))
    assert [(record.stopped, len(record.rewards)) for record in stopped] == [("steps", 9), ("reward", 4)]
    assert stopped[1].reward >= level > max(stopped[1].rewards[:-1])


def test_a_reward_counts_as_reached_by_a_typical_iterate_alone() -> None:
    noise = 3 + start(1, 2, shape=(2, 500))  # P(z) is 0, the reward 3
    settings: dict[str, Any] = {"sample": lambda z: z, "reward": lambda x: x.flatten(1).mean(1), "stop_reward": 0.1}
    for record in make(**settings).run(noise):
        assert min(record.rewards) > 0.1
        assert max(record.log_probabilities) < math.log(0.01)
        assert record.stopped == "steps"
    for record in make(**settings, typical_probability=0.0).run(noise):
        assert (record.stopped, len(record.rewards)) == ("reward", 1)


def test_a_row_stops_where_its_noise_has_left_the_typical_set() -> None:
    for record in make(
        lambda z: z,
        lambda x: -x.flatten(1).square().mean(1),
        steps=12,
        regularizer=Unregularized(),
        stop_probability=1e-4,
    ).run(start(1, 2, shape=(2, 500))):
        assert record.stopped == "probability"
        assert record.log_probabilities[-1] < math.log(1e-4) <= min(record.log_probabilities[:-1])
        assert len(record.rewards) < 13


def test_all_rows_stop_when_the_time_is_over_and_a_resumed_run_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def reward(x: Tensor) -> Tensor:
        clock[0] += 2.0
        return nearness(x)

    optimizer = make(reward=reward, steps=50, max_seconds=5.0)
    assert [(r.stopped, len(r.rewards)) for r in optimizer.run(start(1, 2))] == [("seconds", 3)] * 2
    run = Run(optimizer, start(1, 2), None, None)
    run.step()
    clock[0] += 1000  # the time between two programs is not its own
    assert [len(r.rewards) for r in optimizer.run(start(1, 2), state=saved(run.state_dict()))] == [3, 3]


def test_a_stopped_row_is_not_evaluated_again() -> None:
    seen: list[int] = []

    def reward(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.sum(1)

    noise = torch.stack([torch.full((4,), 5.0), torch.zeros(4)])  # the first row is there from the start
    run = Run(make(lambda z: z, reward, stop_reward=19.0, typical_probability=0.0, steps=3), noise, None, None)
    assert run.step().keys() == {0, 1}
    assert run.step().keys() == {1}
    while not run.finished:
        run.step()
    assert seen == [2, 1, 1, 1]
    assert torch.equal(run.records[0].noise, noise[0])


# ------------------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("step", range(7))
@pytest.mark.parametrize("estimator", [Exact(), Hybrid1(2)])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(step: int, estimator: Any) -> None:
    optimizer = make(steps=6, estimator=estimator, stop_reward=-0.8)
    noise, keys = start(5, 6, 7), [5, 6, 7]
    whole = Run(optimizer, noise, None, keys)
    while not whole.finished:
        whole.step()
    assert {record.stopped for record in whole.records} == {"reward", "steps"}

    first = Run(optimizer, noise, None, keys)
    for _ in range(step):
        first.step()
    state = saved(first.state_dict())
    second = Run(optimizer, torch.zeros_like(noise), None, keys)
    second.load_state_dict(state)
    while not second.finished:
        second.step()
    assert second.evaluations == whole.evaluations == 7
    assert_same(second.records, whole.records)
    ours, theirs = second.state_dict(), whole.state_dict()
    assert torch.equal(ours["noise"], theirs["noise"])
    assert ours["optimizer"]["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    torch.testing.assert_close(ours["optimizer"], theirs["optimizer"], rtol=0, atol=0)
    assert second.seconds > state["seconds"]


def test_a_state_can_be_used_twice() -> None:
    optimizer = make()
    run = Run(optimizer, start(1), None, None)
    run.step()
    state = saved(run.state_dict())
    first, second = (optimizer.run(torch.zeros(1, *SHAPE), state=state) for _ in range(2))
    assert_same(first, second)
    assert len(state["records"][0]["rewards"]) == 1


def test_a_state_stays_as_it_was_while_the_run_goes_on() -> None:
    optimizer = make()
    run = Run(optimizer, start(1), None, None)
    run.step()
    state = run.state_dict()
    while not run.finished:
        run.step()
    assert_same(optimizer.run(start(1), state=state), run.records)


def test_a_finished_state_is_finished() -> None:
    run = Run(make(steps=1), start(1), None, None)
    while not run.finished:
        run.step()
    again = Run(make(steps=1), start(1), None, None)
    assert not again.finished
    again.load_state_dict(saved(run.state_dict()))
    assert again.finished


@pytest.mark.parametrize(
    "device",
    [
        "meta",
        pytest.param(
            "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
        ),
    ],
)
def test_a_state_from_a_file_goes_to_the_noises_device(device: str) -> None:
    """Files are read to the CPU, whatever the run computes on."""
    run = Run(make(), start(1, 2), None, None)
    run.step()
    again = Run(make(network().to(device)), start(1, 2).to(device), None, None)
    again.load_state_dict(saved(run.state_dict()))
    for record in again.records:
        assert {tensor.device.type for tensor in (record.start, record.sample, record.noise)} == {device}
    if device == "meta":  # has no values to go on with
        return
    while not again.finished:
        again.step()
    assert stack(again.records, "sample").device.type == device


def test_the_state_of_another_batch_is_refused() -> None:
    state = Run(make(), start(1, 2), None, None).state_dict()
    with pytest.raises(ValueError, match=r"noise of shape \(2, 3, 4\), but the batch has \(1, 3, 4\); start the batch"):
        make().run(start(1), state=state)
