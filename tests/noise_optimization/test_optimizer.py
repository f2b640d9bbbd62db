"""The loop: rows on their own, the best typical iterate, and ascent by plain gradients; stops are in test_resume.py."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from constrained_diffusion.noise_optimization.gradients import ZOSGD, Exact, Hybrid1, Hybrid2
from constrained_diffusion.noise_optimization.optimizer import DEFAULT_OPTIMIZER, NoiseOptimizer, Run
from constrained_diffusion.noise_optimization.record import stack
from constrained_diffusion.noise_optimization.regularizers import PRNO, ChiNorm, Unregularized
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


# ------------------------------------------------------------------------------------------------------ rows, histories


@pytest.mark.parametrize("estimator", [Exact(), Hybrid2(8)])
def test_a_row_goes_its_way_whatever_is_beside_it(estimator: Any) -> None:
    optimizer = make(steps=10, estimator=estimator, stop_reward=-0.89)
    together = optimizer.run(start(5, 6, 7, 8), keys=[5, 6, 7, 8])
    assert len({len(record.rewards) for record in together}) > 1  # some stop before others
    for key, theirs in zip([5, 6, 7, 8], together, strict=True):
        assert torch.equal(start(key)[0], start(5, 6, 7, 8)[key - 5])
        [ours] = optimizer.run(start(key), keys=[key])
        assert ours.rewards == pytest.approx(theirs.rewards, abs=1e-5)
        assert (ours.stopped, ours.best_step) == (theirs.stopped, theirs.best_step)
        torch.testing.assert_close(ours.noise, theirs.noise, rtol=0, atol=1e-4)


def test_histories_have_an_entry_per_evaluation_and_the_start_is_kept() -> None:
    told: list[tuple[int, list[int]]] = []
    records = make(steps=4).run(start(1, 2), progress=lambda step, r: told.append((step, [len(x.rewards) for x in r])))
    assert told == [(i, [i + 1, i + 1]) for i in range(5)]
    for row, record in enumerate(records):
        assert len(record.rewards) == len(record.log_probabilities) == 5
        assert record.stopped == "steps"
        torch.testing.assert_close(record.start, network()(start(1, 2))[row])
        assert record.rewards[0] == pytest.approx(nearness(record.start[None]).item())
        assert record.reward == max(record.rewards) > record.rewards[0]
        torch.testing.assert_close(nearness(record.sample[None]).item(), record.reward)
        torch.testing.assert_close(network()(record.noise[None])[0], record.sample)
        assert record.summary()["steps"] == 4
    assert stack(records, "noise").shape == (2, *SHAPE)


@pytest.mark.parametrize(("name", "given"), [("keys", [1]), ("context", ["a", "b", "c"])])
def test_there_is_one_key_and_one_context_per_row(name: str, given: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} needs one entry per row of the noise, 2, but has {len(given)}"):
        make(lambda z, c=None: z, lambda x, c=None: x.flatten(1).sum(1)).run(start(1, 2), **{name: given})


def test_no_steps_return_the_start() -> None:
    noise = start(1, 2)
    for row, record in enumerate(make(steps=0).run(noise)):
        assert torch.equal(record.noise, noise[row])
        assert torch.equal(record.sample, record.start)
        assert (len(record.rewards), record.best_step, record.stopped) == (1, 0, "steps")


def test_contexts_go_with_their_rows() -> None:
    def sample(z: Tensor, context: list[float]) -> Tensor:
        assert len(context) == len(z)
        return z.flatten(1)

    def reward(x: Tensor, context: list[float]) -> Tensor:
        return -(x.mean(1) - torch.tensor(context)).abs()

    optimizer = make(sample, reward, steps=60, stop_reward=-0.03, regularizer=Unregularized())
    records = optimizer.run(start(1, 2, 3), context=[0.0, 1.0, -1.0])
    assert [record.stopped for record in records] == ["reward"] * 3
    assert len({len(record.rewards) for record in records}) > 1
    assert [record.sample.mean().item() for record in records] == pytest.approx([0.0, 1.0, -1.0], abs=0.031)


def test_the_callers_noise_is_left_alone_and_optimised_in_float32() -> None:
    noise = start(1)
    [record] = make().run(noise)
    assert torch.equal(noise, start(1))
    assert not torch.equal(record.noise, noise[0])
    assert make().run(noise.half())[0].noise.dtype == torch.float32
    assert make(network().double()).run(noise.double())[0].noise.dtype == torch.float64


def test_the_samplers_weights_are_not_touched() -> None:
    sample = network()
    before = {name: value.clone() for name, value in sample.state_dict().items()}
    for estimator in (Exact(), Hybrid1(2), ZOSGD(2)):
        make(sample, estimator=estimator).run(start(1))
    assert all(parameter.grad is None for parameter in sample.parameters())
    assert all(torch.equal(value, before[name]) for name, value in sample.state_dict().items())


# ----------------------------------------------------------------------------------------------------- the typical set


def shrinking(x: Tensor) -> Tensor:
    """Best at z = 0, far out of the typical set."""
    return -x.flatten(1).square().mean(1)


LONG = (2, 500)
LEAVING: dict[str, Any] = {
    "sample": lambda z: z, "reward": shrinking, "steps": 12, "regularizer": Unregularized(),
}  # fmt: skip


def test_the_best_iterate_inside_the_typical_set_is_returned() -> None:
    for record in make(**LEAVING).run(start(1, 2, 3, shape=LONG)):
        typical = [i for i, value in enumerate(record.log_probabilities) if value >= math.log(0.01)]
        assert 0 < len(typical) < 13
        assert record.best_step == max(typical, key=lambda i: record.rewards[i]) > 0
        assert record.probability >= 0.01 > math.exp(record.log_probabilities[-1])
        assert record.rewards[-1] > record.reward == pytest.approx(shrinking(record.sample[None]).item())
        assert torch.equal(record.sample, record.noise)


def test_without_a_bound_the_best_of_all_is_returned() -> None:
    for record in make(**LEAVING, typical_probability=0.0).run(start(1, shape=LONG)):
        assert record.best_step == 12
        assert record.probability < 1e-3


def test_the_start_is_returned_where_no_iterate_was_typical() -> None:
    for record in make(**LEAVING).run(0.5 * start(1, shape=LONG)):
        assert record.rewards[-1] > record.rewards[0]
        assert max(record.log_probabilities) < math.log(0.01)
        assert record.best_step == 0
        assert torch.equal(record.sample, record.start)


def test_prno_leads_back_and_a_typical_iterate_goes_before_a_better_one() -> None:
    settings = {**LEAVING, "regularizer": PRNO(), "reward": lambda x: 1e-3 * shrinking(x), "max_grad_norm": None}
    for record in make(**settings).run(0.7 * start(1, 2, shape=LONG)):
        assert record.log_probabilities[0] < math.log(0.01) <= record.log_probabilities[record.best_step]
        assert record.reward < record.rewards[0]


def test_the_regulariser_counts_by_its_weight() -> None:
    """Ascent of the chi norm alone: z + lr * weight * ((n - 1) / |z|^2 - 1) z."""
    z = 2 * start(1, shape=(20,))
    optimizer = make(
        lambda z: z, lambda x: 0 * x.sum(1), steps=1, regularizer=ChiNorm(0.5), optimizer=partial(SGD, lr=0.1),
        max_grad_norm=None,
    )  # fmt: skip
    run = Run(optimizer, z, None, None)
    run.step()
    torch.testing.assert_close(run.noise, z + 0.1 * 0.5 * (19 / z.square().sum() - 1) * z)


def test_the_seed_draws_the_orders_and_every_step_anew() -> None:
    still = {"sample": lambda z: z.flatten(1), "reward": lambda x: 0 * x.sum(1), "regularizer": Unregularized()}
    first, again, other = (make(**still, seed=seed).run(1.5 * start(1, shape=LONG))[0] for seed in (0, 0, 1))
    assert first.log_probabilities == again.log_probabilities
    assert len({*first.log_probabilities, *other.log_probabilities}) == 12


# ---------------------------------------------------------------------------------------------------------- the updates


def test_each_rows_gradient_is_clipped_on_its_own() -> None:
    slopes = torch.tensor([0.1, 1.0, 30.0])

    def reward(x: Tensor, context: list[float]) -> Tensor:
        return torch.tensor(context) * x.sum(1) / 2  # over four numbers: a gradient of norm `context`

    for limit, moved in ((1.0, [0.1, 1.0, 1.0]), (None, [0.1, 1.0, 30.0])):
        optimizer = make(
            lambda z, _: z, reward, regularizer=Unregularized(), optimizer=partial(SGD, lr=1.0), max_grad_norm=limit
        )
        run = Run(optimizer, torch.zeros(3, 4), slopes.tolist(), None)
        run.step()
        assert run.noise.norm(dim=1).tolist() == pytest.approx(moved)
        assert (run.noise > 0).all()  # upwards


@pytest.mark.parametrize("seed", range(3))
def test_plain_gradients_with_a_small_step_never_lose_reward(seed: int) -> None:
    """Theorem 1 of D: the mean reward does not fall for steps below 2 / L."""
    optimizer = make(
        network().double(), steps=60, regularizer=Unregularized(), permutations=0, max_grad_norm=None,
        optimizer=partial(SGD, lr=0.02),
    )  # fmt: skip
    records = optimizer.run(start(*range(seed, seed + 8)).double())
    mean = torch.tensor([record.rewards for record in records], dtype=torch.float64).mean(0)
    assert (mean.diff() >= 0).all()
    assert mean[-1] > mean[0] + 0.1


def test_a_step_beyond_the_bound_may_lose_reward() -> None:
    """r = -z^2 / 2 has L = 1: a step of 1.9 climbs, one of 2.1 falls."""
    ends = {}
    for lr in (1.9, 2.1):
        [record] = make(
            lambda z: z, lambda x: -x.square().sum(1) / 2, regularizer=Unregularized(), max_grad_norm=None,
            optimizer=partial(SGD, lr=lr),
        ).run(torch.ones(1, 2))  # fmt: skip
        ends[lr] = record.rewards[-1] - record.rewards[0]
    assert ends[1.9] > 0 > ends[2.1]


def test_there_is_no_weight_decay_by_default() -> None:
    default = DEFAULT_OPTIMIZER([torch.zeros(1)])
    assert type(default) is Adam
    assert default.defaults["weight_decay"] == 0
    noise = start(1, 2)
    run = Run(make(reward=lambda x: 0 * x.sum(1), regularizer=Unregularized()), noise, None, None)
    while not run.finished:
        run.step()
    assert torch.equal(run.noise, noise)


def test_a_black_box_is_climbed_without_its_gradient() -> None:
    def rounded(x: Tensor) -> Tensor:
        return torch.tensor([round(float(value), 2) for value in nearness(x)])

    for estimator in (ZOSGD(32, mu=0.1), Hybrid1(32, mu=0.1), Hybrid2(32, mu=0.1)):
        for record in make(reward=rounded, estimator=estimator, steps=10, regularizer=Unregularized()).run(start(1, 2)):
            assert record.reward > record.rewards[0] + 0.1
