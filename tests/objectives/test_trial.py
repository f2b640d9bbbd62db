"""An objective is tried on a few samples before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.objectives import Constraint, Feasibility, Reward, check_objective

SHAPE = (1, 4, 4)


class Mine(Constraint):
    """Returns what it was told to."""

    def __init__(self, returned: Any = lambda x: x.flatten(1)) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, clean: Tensor) -> Tensor:
        found: Tensor = self.returned(clean)
        return found


class Unfinished(Mine):
    """Forgets its base."""

    def __init__(self) -> None:
        self.limit = 0.5


class HalfMade(Mine):
    """Calls the wrong base."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


class UnfinishedReward(Reward):
    """Forgets its base."""

    def __init__(self) -> None:
        self.limit = 0.5

    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1)


@pytest.mark.parametrize("cls", [Unfinished, HalfMade, UnfinishedReward])
def test_a_forgotten_base_is_named(cls: Any) -> None:
    with pytest.raises(TypeError, match=rf"{cls.__name__} lacks .*call super\(\).__init__\(\) in the first line of"):
        check_objective(cls(), SHAPE)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda x: x.mean(), r"must return g of shape .* but returned \(\)"),
        (lambda x: x.flatten(1)[:, :2].T, r"must return g of shape .* but returned \(2, 3\)"),
        (
            lambda x: x.view(7, 7),
            r"fails on 3 samples of shape \(1, 4, 4\) \(RuntimeError: shape '\[7, 7\]' is invalid",
        ),
        (lambda x: {}["limit"], r"fails on 3 samples of shape \(1, 4, 4\) \(KeyError: 'limit'\)"),
        (lambda x: x.flatten(1) * float("nan"), "returned nan for samples of zeros, of 0.5 and of noise"),
        (lambda x: x.flatten(1).sum(1) + float("inf"), "returned inf for samples"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_name(returned: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"^Mine {told}") as error:
        check_objective(Mine(returned), SHAPE)
    assert "\n" not in str(error.value)
    assert ("fails" in told) == (error.value.__cause__ is not None)


def test_g_needs_no_value_for_an_even_picture() -> None:
    check_objective(Mine(lambda x: x.flatten(1).mean(1) / x.flatten(1).std(1)), SHAPE)


class Weighed(Constraint):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((16, 1), 1 / 16), requires_grad=False)

    def forward(self, clean: Tensor) -> Tensor:
        return (clean.flatten(1) @ self.weights).squeeze(1)


def test_an_objective_in_double_precision_is_tried_in_it() -> None:
    check_objective(Weighed(), SHAPE)
    check_objective(Weighed().double(), SHAPE)


def test_a_trial_leaves_no_trace() -> None:
    constraint = Mine()
    constraint.norm, constraint.fixed = nn.BatchNorm2d(1), nn.BatchNorm2d(1).eval()
    constraint.returned = lambda x: constraint.fixed(constraint.norm(x)).flatten(1) + torch.rand(3, 1)
    before = {key: value.clone() for key, value in constraint.state_dict().items()}
    random = torch.get_rng_state()
    check_objective(constraint, SHAPE)
    assert torch.equal(torch.get_rng_state(), random)
    assert [constraint.training, constraint.norm.training, constraint.fixed.training] == [True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in constraint.state_dict().items())


def test_a_constraint_on_steps_waits_for_a_step() -> None:
    on_steps = Mine(lambda record: record.noise)
    on_steps.needs_step_record = True
    check_objective(on_steps, SHAPE)


def test_a_reward_that_needs_prompts_gets_some() -> None:
    class Prompted(Reward):
        needs_prompts = True

        def forward(self, clean: Tensor, prompts: list[str]) -> Tensor:  # type: ignore[override]
            return torch.tensor([float(len(prompt)) for prompt in prompts])

    check_objective(Prompted(), SHAPE)
    check_objective(Feasibility(Mine()), SHAPE)


def test_an_objective_in_half_precision_is_tried_on_what_it_will_get_samples_in_single() -> None:
    seen: list[torch.dtype] = []
    constraint = Mine(lambda x: seen.append(x.dtype) or x.flatten(1))
    constraint.weights = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    check_objective(constraint, SHAPE)
    assert seen == [torch.float32]
