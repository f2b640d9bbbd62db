"""Constraints and rewards: sign conventions, converters, registry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from constrained_diffusion import objectives
from constrained_diffusion.objectives import Constraint, Feasibility, Reward, RewardAtLeast
from constrained_diffusion.objectives import registry as registry_module


class Ball(Constraint):
    """g = |x| - 1 and, as a second constraint, g = x_0 - 0.5."""

    def forward(self, clean: Tensor) -> Tensor:
        return torch.stack([clean.norm(dim=1) - 1, clean[:, 0] - 0.5], dim=1)


class MeanPixel(Reward):
    """The mean."""

    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1)


class FileSize(MeanPixel):
    """A black box."""

    differentiable = False


class WholeStep(Constraint):
    """One that looks at the step."""

    needs_step_record = True

    def forward(self, clean: Tensor) -> Tensor:
        return clean


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A copy of the registry, so that tests leave nothing behind."""
    copy = dict(registry_module._REGISTRY)
    monkeypatch.setattr(registry_module, "_REGISTRY", copy)
    return copy


def test_a_reward_above_its_threshold_is_feasible() -> None:
    g = RewardAtLeast(MeanPixel(), threshold=0.4)(torch.tensor([[0.5, 0.5], [0.25, 0.25], [0.4, 0.4]]))
    torch.testing.assert_close(g, torch.tensor([-0.1, 0.15, 0.0]))


def test_feasibility_is_minus_the_worst_violation() -> None:
    x = torch.tensor([[0.3, 0.0], [3.0, 4.0], [0.6, 0.0]])
    # |x| - 1 = -0.7, 4, -0.4 and x_0 - 0.5 = -0.2, 2.5, 0.1
    torch.testing.assert_close(Feasibility(Ball())(x), torch.tensor([0.0, -4.0, -0.1]))
    torch.testing.assert_close(Feasibility(Ball(tolerance=0.5))(x), torch.tensor([0.0, -3.5, 0.0]))


def test_converters_carry_gradients() -> None:
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Feasibility(Ball()), x)
    assert torch.autograd.gradcheck(RewardAtLeast(MeanPixel(), 0.4), x)


def test_there_and_back_keeps_what_is_violated() -> None:
    x = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    g = RewardAtLeast(Feasibility(RewardAtLeast(MeanPixel(), 0.5)), threshold=0.0)(x)
    torch.testing.assert_close(g, torch.relu(0.5 - x.mean(1)))


def test_a_black_box_stays_one() -> None:
    assert RewardAtLeast(MeanPixel(), 0.0).differentiable
    constraint = RewardAtLeast(FileSize(), 0.0)
    assert not constraint.differentiable
    assert not Feasibility(constraint).differentiable


def test_feasibility_of_a_constraint_on_the_step_is_refused() -> None:
    with pytest.raises(ValueError, match="on clean samples, but WholeStep needs the step record"):
        Feasibility(WholeStep())


@pytest.mark.parametrize("base", [Constraint, Reward])
def test_the_bases_are_abstract(base: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        base()


def test_register_and_get(registry: dict[str, object]) -> None:
    assert objectives.register()(Ball) is Ball
    assert objectives.register("bright")(MeanPixel) is MeanPixel
    assert objectives.get("Ball") is Ball
    assert objectives.get("bright") is MeanPixel
    assert "Ball" in objectives.available(Constraint)
    assert "Ball" not in objectives.available(Reward)
    assert set(objectives.available()) == set(registry)
    assert objectives.available() == sorted(objectives.available())
    assert objectives.register()(Ball) is Ball  # once more, as a reloaded module does


def test_a_taken_name_is_refused(registry: dict[str, object]) -> None:
    objectives.register("Ball")(Ball)
    with pytest.raises(ValueError, match=f"'Ball' is registered already, by {Ball.__module__}"):
        objectives.register("Ball")(MeanPixel)
    assert objectives.get("Ball") is Ball


def test_only_objectives_are_registered(registry: dict[str, object]) -> None:
    before = dict(registry)
    with pytest.raises(TypeError, match="subclass of Constraint or Reward, got int"):
        objectives.register()(int)
    assert registry == before


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"'Bal'; registered are .*Feasibility.*RewardAtLeast"):
        objectives.get("Bal")


def test_a_constraint_holds_up_to_its_margin_and_only_where_g_is_a_number() -> None:
    samples = torch.tensor([[0.4, 0.0], [0.6, 0.0], [0.0, 1.15], [0.0, 1.3], [float("nan"), 0.0]])
    assert Ball().holds(samples).tolist() == [True, False, False, False, False]
    wide = Ball(tolerance=0.1)
    wide.margin = 0.1
    assert wide.holds(samples).tolist() == [True, True, True, False, False]
    assert torch.equal(wide(samples)[:4], Ball()(samples)[:4])  # what is aimed at stays
