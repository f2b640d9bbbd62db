"""What every registered constraint and reward promises; a new one needs one line in `EXAMPLES`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion import constraints, rewards
from constrained_diffusion.constraints import ClassProbability
from constrained_diffusion.objectives import Constraint, Feasibility, Objective, Reward, RewardAtLeast, available, get

IMPORTED = (constraints, rewards)  # importing them registers what they hold
ROWS = 6


class Ink(Reward):
    """The mean pixel."""

    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1)


class ThirdHalves(Constraint):
    """Three inequalities: no third of the image may be brighter than a half."""

    def forward(self, clean: Tensor) -> Tensor:
        return torch.stack([part.flatten(1).mean(1) for part in clean.chunk(3, dim=-1)], dim=1) - 0.5


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.SiLU(), nn.Linear(8, 4))


class Example(NamedTuple):
    """One way to make an objective, and samples that it can judge, as a function of seed and dtype."""

    make: Callable[[], Objective]
    shape: tuple[int, ...] = (1, 6, 6)

    def samples(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        return torch.rand(ROWS, *self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
            dtype
        )


EXAMPLES = {
    "ClassProbability": Example(lambda: ClassProbability(classifier(), label=1, threshold=0.1)),
    "RewardAtLeast": Example(lambda: RewardAtLeast(Ink(), threshold=0.5)),
    "Feasibility": Example(lambda: Feasibility(ThirdHalves(tolerance=-0.2))),
}
DTYPES = (torch.float32, torch.float64)
each = pytest.mark.parametrize("name", sorted(EXAMPLES))


def make(name: str, dtype: torch.dtype = torch.float32) -> Objective:
    return EXAMPLES[name].make().to(dtype)


def test_every_registered_objective_has_an_example() -> None:
    ours = {name for name in available() if get(name).__module__.startswith("constrained_diffusion.")}
    assert set(EXAMPLES) == ours


@each
def test_the_name_stands_for_the_class(name: str) -> None:
    assert type(make(name)) is get(name)
    assert issubclass(get(name), Constraint) != issubclass(get(name), Reward)


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_dtype_and_finite_values(name: str, dtype: torch.dtype) -> None:
    values = make(name, dtype)(EXAMPLES[name].samples(dtype))
    assert values.shape[0] == ROWS
    assert values.ndim == 1 or (values.ndim == 2 and isinstance(make(name), Constraint))
    assert values.dtype == dtype
    assert bool(values.isfinite().all())
    assert values.std() > 0  # it looks at the samples


@each
def test_single_and_double_precision_agree(name: str) -> None:
    single, double = (make(name, dtype)(EXAMPLES[name].samples(dtype)) for dtype in DTYPES)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@each
def test_rows_are_independent(name: str) -> None:
    objective, samples = make(name), EXAMPLES[name].samples()
    whole = objective(samples)
    torch.testing.assert_close(torch.cat([objective(row[None]) for row in samples]), whole)
    torch.testing.assert_close(objective(samples.flip(0)), whole.flip(0))
    changed = samples.clone()
    changed[0] = EXAMPLES[name].samples(seed=1)[0]
    torch.testing.assert_close(objective(changed)[1:], whole[1:])


@each
def test_the_same_samples_give_the_same_values_whatever_the_mode(name: str) -> None:
    objective, samples = make(name), EXAMPLES[name].samples()
    before = samples.clone()
    torch.testing.assert_close(objective.train()(samples), objective.eval()(samples))
    assert torch.equal(samples, before)


@each
def test_the_gradient_where_promised(name: str) -> None:
    objective, samples = make(name, torch.float64), EXAMPLES[name].samples(torch.float64)
    assert isinstance(objective.differentiable, bool)
    if not objective.differentiable:
        pytest.skip("promises no gradient")
    samples.requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(samples).sum(), samples)
    assert bool(gradient.isfinite().all())
    assert gradient.abs().max() > 0
    assert torch.autograd.gradcheck(objective, (samples,), fast_mode=True)


@each
def test_nothing_of_it_is_trained_by_a_gradient_on_samples(name: str) -> None:
    objective, samples = make(name), EXAMPLES[name].samples().requires_grad_(True)
    before = copy.deepcopy(objective.state_dict())
    if objective.differentiable:
        objective(samples).sum().backward()
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())


@each
def test_data_that_it_can_judge_pass_its_check(name: str) -> None:
    objective = make(name)
    if not isinstance(objective, Constraint):
        pytest.skip("only constraints check their data")
    objective.check_data(EXAMPLES[name].shape)
    assert isinstance(objective.tolerance, float)
    assert isinstance(objective.needs_step_record, bool)
