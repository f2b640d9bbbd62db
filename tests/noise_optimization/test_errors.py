"""What the loop refuses, and in which words."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from constrained_diffusion.noise_optimization.gradients import ZOSGD, Exact, Hybrid1, Hybrid2
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer, Run
from constrained_diffusion.noise_optimization.problem import name_of
from constrained_diffusion.noise_optimization.regularizers import Regularizer, Unregularized
from constrained_diffusion.runtime.randomness import keyed_normal


def start(*keys: int) -> Tensor:
    return keyed_normal([(key,) for key in keys], (3, 4))


def mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def make(sample: Any = lambda z: z.flatten(1).tanh(), reward: Any = mean, **settings: Any) -> NoiseOptimizer:
    return NoiseOptimizer(sample, reward, **{"steps": 5, "permutations": 4, **settings})


# ---------------------------------------------------------------------------------------------------------------- names


class Judge(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return math.nan * mean(x)

    def verdict(self, x: Tensor) -> Tensor:
        return self(x)


class Wrapped(Judge):
    """One that passes a judge on, under the judge's name."""

    __name__ = "Judge"


def judge(x: Tensor) -> Tensor:
    return Judge()(x)


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (Judge(), "Judge"),
        (Judge().verdict, "Judge.verdict"),
        (Wrapped(), "Judge"),
        (judge, "judge"),
        (partial(judge), "judge"),
        (partial(Judge().verdict), "Judge.verdict"),
        (lambda x: judge(x), "<lambda>"),
    ],
)
def test_messages_call_a_reward_by_its_name(reward: Any, name: str) -> None:
    assert name_of(reward) == name
    with pytest.raises(ValueError, match=f"^{name} returned nan for a sample; a reward must be finite"):
        make(reward=reward).run(start(1))


# ---------------------------------------------------------------------------------------------------------- the reward


class Blunt:
    differentiable = False

    def __call__(self, x: Tensor) -> Tensor:
        return x.sum(1).round()


def test_a_reward_without_gradient_needs_an_estimator() -> None:
    with pytest.raises(TypeError, match="Blunt is not differentiable, and Exact needs .* Hybrid2, Hybrid1 or ZOSGD"):
        make(reward=Blunt())
    make(reward=Blunt(), estimator=Hybrid2())
    with pytest.raises(TypeError, match="gives no gradient with respect to the sample"):
        make(reward=lambda x: x.detach().sum(1)).run(start(1))


@pytest.mark.parametrize("steps", [0, 3])
def test_a_reward_of_the_wrong_shape_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=r"one number per sample, shape \(2,\), but <lambda> returned \(2, 12\)"):
        make(reward=lambda x: x, steps=steps).run(start(1, 2))
    with pytest.raises(ValueError, match=r"shape \(2,\), but <lambda> returned \(\); average or sum over the rest"):
        make(reward=lambda x: x.sum(), steps=steps).run(start(1, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("estimator", [Exact(), ZOSGD(2)])
def test_a_reward_that_is_not_finite_is_refused(value: float, estimator: Any) -> None:
    with pytest.raises(ValueError, match=f"<lambda> returned {value} for a sample; a reward must be finite"):
        make(reward=lambda x: mean(x).abs() * torch.tensor([1.0, value]), estimator=estimator).run(start(1, 2))


def test_k_must_divide_the_noise() -> None:
    with pytest.raises(ValueError, match="k must divide the number of noise variables of a sample, 12, but got k=5"):
        make(k=5).run(start(1))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": -1}, "steps >= 0, .* got -1, 4 and 1.0"),
        ({"permutations": -1}, "permutations >= 0 .* got 5, -1 and 1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm > 0 or None; got 5, 4 and 0.0"),
        ({"typical_probability": 1.5}, r"typical_probability must lie in \[0, 1\], got 1.5"),
        ({"stop_probability": -0.1}, r"stop_probability must lie in \[0, 1\], got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make(**settings)


@pytest.mark.parametrize(("value", "kind"), [(1.0, "float"), ([1.0, 2.0], "list"), (None, "NoneType")])
@pytest.mark.parametrize("estimator", [Exact(), ZOSGD(2)])
def test_what_is_no_tensor_is_refused(value: Any, kind: str, estimator: Any) -> None:
    told = "a {} must return a tensor of one entry per row, but <lambda> returned a " + kind
    with pytest.raises(TypeError, match=told.format("reward") + "; stack the entries with torch.stack"):
        make(reward=lambda x: value, estimator=estimator).run(start(1, 2))
    with pytest.raises(TypeError, match=told.format("sample map")):
        make(lambda z: value, estimator=estimator).run(start(1, 2))


@pytest.mark.parametrize("estimator", [ZOSGD(4), Hybrid1(4), Hybrid2(4)])
def test_verdicts_of_yes_and_no_are_numbers(estimator: Any) -> None:
    [record] = make(reward=lambda x: mean(x) > 0, estimator=estimator).run(start(1))
    assert set(record.rewards) <= {0.0, 1.0}


# ------------------------------------------------------------------------------------------------- samples and batches


@pytest.mark.parametrize("estimator", [Exact(), ZOSGD(2), Hybrid1(2)])
@pytest.mark.parametrize("steps", [0, 3])
def test_there_is_a_sample_for_every_row(estimator: Any, steps: int) -> None:
    told = r"must return one sample per row of z, 2, but <lambda> returned shape \(1, 3, 4\); leave the first side"
    with pytest.raises(ValueError, match=told):
        make(lambda z: z[:1] * 1.0, estimator=estimator, steps=steps).run(start(1, 2))


@pytest.mark.parametrize("shape", [(0, 3, 4), (12,), ()])
def test_noise_has_rows(shape: tuple[int, ...]) -> None:
    given = re.escape(str(shape))
    with pytest.raises(ValueError, match=rf"\(B, \*z_shape\) .* got {given}; give at least one z, .* z\[None\]"):
        make().run(torch.zeros(shape))


# ----------------------------------------------------------------------------------------------------- lost gradients


WEIGHT = torch.ones(1, requires_grad=True)  # of a network that was not frozen


@pytest.mark.parametrize("factor", [1.0, WEIGHT])
def test_a_reward_that_detaches_is_blamed(factor: Any) -> None:
    with pytest.raises(TypeError, match="the reward gives no gradient with respect to the sample"):
        make(reward=lambda x: mean(x.detach()) * factor).run(start(1))


@pytest.mark.parametrize("factor", [1.0, WEIGHT])
@pytest.mark.parametrize("estimator", [Exact(), Hybrid1(2), Hybrid2(2)])
def test_a_sample_map_that_detaches_is_blamed(factor: Any, estimator: Any) -> None:
    def sample(z: Tensor) -> Tensor:
        return z.detach() * factor

    with pytest.raises(
        TypeError, match="the sample gives no gradient with respect to z; .* choose the estimator ZOSGD"
    ):
        make(sample, estimator=estimator).run(start(1))
    make(sample, estimator=ZOSGD(2)).run(start(1))


class Cracked(Regularizer):
    def __call__(self, noise: Tensor, bounds: Tensor) -> Tensor:
        return (0 * noise.sum(1)).sqrt()


def root(x: Tensor) -> Tensor:
    """0, with a gradient of 0 times infinity."""
    return (0 * mean(x)).sqrt()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"reward": root}, "root"),
        ({"regularizer": Cracked()}, "Cracked"),
        ({"sample": root, "reward": Tensor.clone}, "clone"),
    ],
)
def test_a_gradient_that_is_not_finite_is_refused_before_z_moves(settings: Any, name: str) -> None:
    run = Run(make(**settings), start(1, 2), None, None)
    with pytest.raises(ValueError, match=f"^the gradient of {name} with respect to z must be finite, but is nan"):
        run.step()
    assert torch.equal(run.noise, start(1, 2))


def test_a_row_that_has_stopped_needs_no_gradient() -> None:
    optimizer = make(
        lambda z: z.flatten(1), lambda x: x.abs().sum(1).sqrt(), steps=1, stop_reward=0.0, typical_probability=0.0,
        regularizer=Unregularized(), optimizer=partial(SGD, lr=0.1),
    )  # fmt: skip
    [record] = optimizer.run(torch.zeros(1, 12))
    assert (record.stopped, record.reward) == ("reward", 0.0)
