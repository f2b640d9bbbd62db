"""Every controller on small programs with known solutions and multipliers, under Lightning's automatic optimisation."""

from __future__ import annotations

import builtins
import logging
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from constrained_diffusion.callbacks import (
    AugmentedLagrangian,
    ConstraintCallback,
    DualAscent,
    FeasibilityGrowth,
    FixedPenalty,
    NuPI,
    PenaltyScheduler,
)
from constrained_diffusion.fine_tuning.penalty import multiplier_weight, penalty_active, quadratic_penalty
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime.distribution import install_hint

Function = Callable[[Tensor], Tensor]


class Limit(Constraint):
    """Stands for one of the program's inequalities, which the program itself measures."""

    def forward(self, clean: Tensor) -> Tensor:
        raise NotImplementedError


class Program(LightningModule):
    """min f(x) subject to g(x) <= 0, by gradient descent on x: what the controllers steer, without diffusion."""

    def __init__(self, objective: Function, constraints: dict[str, Function], start: list[float], lr: float) -> None:
        super().__init__()
        self.objective, self.functions, self.lr = objective, list(constraints.values()), lr
        self.steering = Steering([Limit() for _ in constraints])
        self.steering.names = list(constraints)
        self.steering.has_verdict = [name != "uncounted" for name in constraints]
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.steering.double()

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        slack = torch.stack([g(self.x) for g in self.functions])
        penalty = quadratic_penalty(slack)
        weight = self.steering.penalty_coefficient * penalty_active(penalty, self.steering.stop_below)
        dual = multiplier_weight(self.steering.multiplier, self.steering.augmentation, slack.detach())
        loss = self.objective(self.x) + (weight * penalty + dual * slack).sum()
        return {
            "loss": loss,
            "penalty": penalty.detach(),
            "slack": slack.detach(),
            "penalty_rows": torch.tensor(1.0),
        }

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.x], lr=self.lr)


def away(target: tuple[float, float]) -> Function:
    return lambda x: (x - torch.tensor(target, dtype=x.dtype)).square().sum()


# (objective, constraints, start), solution, multipliers (sum_k lambda_k grad g_k is what they are compared by)
PROGRAMS: dict[str, tuple[Any, list[float], list[float]]] = {
    "active": ((away((2, 1)), {"sum": lambda x: x.sum() - 1}, [0.0, 0.0]), [1, 0], [2]),
    "inactive": ((away((2, 1)), {"sum": lambda x: x.sum() - 5}, [0.0, 0.0]), [2, 1], [0]),
    "one of two": (
        (away((2, 1)), {"sum": lambda x: x.sum() - 1, "low": lambda x: x[1] - 3}, [0.0, 0.0]), [1, 0], [2, 0]
    ),
    "equality-like": (
        (away((2, 1)), {"at most": lambda x: x.sum() - 1, "at least": lambda x: 1 - x.sum()}, [0.0, 0.0]), [1, 0], [2]
    ),
    "in conflict": (
        (away((2, 2)), {"disc": lambda x: x.square().sum() - 2, "left": lambda x: x[0] - 0.5}, [0.0, 0.0]),
        [0.5, math.sqrt(1.75)],
        [2 / math.sqrt(1.75) - 1, 4 - 2 / math.sqrt(1.75)],
    ),
    # Outside the disc; at the solution the Lagrangian is convex, which dual ascent needs.
    "non-convex": ((away((0.2, 0)), {"disc": lambda x: 1 - x.square().sum()}, [0.5, 0.1]), [1, 0], [0.8]),
    "singular": (
        (lambda x: -x[0] * x[1], {"disc": lambda x: x.square().sum() - 1}, [0.9, 0.3]), [math.sqrt(0.5)] * 2, [0.5]
    ),
}  # fmt: skip
DUALS: dict[str, Callable[[], ConstraintCallback]] = {
    "augmented": lambda: AugmentedLagrangian(initial=1.0, every_n_steps=40),
    "ascent": lambda: DualAscent(partial(torch.optim.SGD, lr=0.05)),
    "nu-PI": lambda: NuPI(lr=0.05, proportional=5.0),
}
PENALTIES: dict[str, Callable[[], ConstraintCallback]] = {
    "growth": lambda: FeasibilityGrowth(initial=1.0, every_n_steps=20, max_coefficient=20, stop_below=0.0),
    "schedule": lambda: PenaltyScheduler(1.0, growth_factor=2.0, every_n_steps=40, max_iterations=160, stop_below=0.0),
    "fixed": lambda: FixedPenalty(20.0),
}
CONTROLLERS = DUALS | PENALTIES


def solve(program: Any, callback: ConstraintCallback, steps: int, lr: float = 0.05) -> Program:
    module = Program(*program, lr=lr)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback], barebones=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.zeros(steps, 1), batch_size=1))  # type: ignore[arg-type]
    return module


@pytest.mark.parametrize(
    ("name", "controller"), [(n, c) for n in PROGRAMS for c in DUALS if (n, c) != ("singular", "ascent")]
)
def test_multipliers_find_the_kkt_point(name: str, controller: str) -> None:
    program, solution, multipliers = PROGRAMS[name]
    callback = DUALS[controller]()
    module = solve(program, callback, 1500)
    assert module.x.tolist() == pytest.approx(solution, abs=1e-3)
    assert callback.violated == []
    found = multiplier_weight(module.steering.multiplier, module.steering.augmentation, slack_of(module)).tolist()
    assert ([found[0] - found[1]] if name == "equality-like" else found) == pytest.approx(multipliers, abs=0.01)


def test_plain_dual_ascent_goes_round_where_the_lagrangian_has_no_curvature() -> None:
    """What docs/controllers.md warns of: twice the steps that the two others need, and it has not settled."""
    program, solution, _ = PROGRAMS["singular"]
    module = solve(program, DUALS["ascent"](), 3000)
    assert (module.x - torch.tensor(solution, dtype=module.x.dtype)).norm() > 0.05


def test_a_resumed_fit_without_a_step_left_still_says_what_does_not_hold() -> None:
    callback = DualAscent()
    module = Program(away((0, 0)), {"g": lambda x: x[0] + 1}, [0.0, 0.0], 0.1)
    callback.load_state_dict({"steps": 5, "smoothed": torch.ones(2, 1), "optimizer": {}})
    callback.on_train_end(None, module)  # type: ignore[arg-type]
    assert callback.violated == ["g"]


@pytest.mark.parametrize("controller", PENALTIES)
@pytest.mark.parametrize("name", ["active", "inactive", "one of two", "in conflict", "non-convex"])
def test_penalties_end_near_the_kkt_point(name: str, controller: str) -> None:
    """At a violation of lambda / 2C, so that 2 C g is the multiplier."""
    program, solution, multipliers = PROGRAMS[name]
    module = solve(program, PENALTIES[controller](), 1000, lr=0.004)
    assert module.x.tolist() == pytest.approx(solution, abs=0.08)
    found = (2 * module.steering.penalty_coefficient * slack_of(module).relu()).tolist()
    assert found == pytest.approx(multipliers, abs=0.25)  # of order 1 / C off


def slack_of(module: Program) -> Tensor:
    return torch.stack([g(module.x) for g in module.functions]).detach()


@pytest.mark.parametrize("coefficient", [1.0, 10.0])
def test_a_fixed_penalty_ends_where_its_closed_form_says(coefficient: float) -> None:
    """x = (2, 1) - C v, and so v = 2 / (1 + 2 C) for the violation v = x + y - 1."""
    module = solve(PROGRAMS["active"][0], FixedPenalty(coefficient), 500, lr=0.02)
    assert float(slack_of(module)) == pytest.approx(2 / (1 + 2 * coefficient), abs=1e-6)


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_an_infeasible_program_is_called_so(controller: str, caplog: pytest.LogCaptureFixture) -> None:
    constraints = {"at most 0": lambda x: x[0], "below 3": lambda x: x[0] - 3, "at least 1": lambda x: 1 - x[0]}
    callback = CONTROLLERS[controller]()
    with caplog.at_level(logging.INFO):
        solve((away((2, 1)), constraints, [0.5, 0.0]), callback, 300, lr=0.004)
    assert callback.violated
    assert set(callback.violated) <= {"at most 0", "at least 1"}
    told = [record.message for record in caplog.records if "infeasible" in record.message]
    assert len(told) == len(callback.violated)
    for name, text in zip(callback.violated, told, strict=True):
        assert f"'{name}' still does not hold after 300 steps" in text


def test_a_constraint_that_does_not_count_is_not_called_infeasible(caplog: pytest.LogCaptureFixture) -> None:
    callback = FixedPenalty(0.1)
    with caplog.at_level(logging.INFO):
        solve((away((2, 1)), {"uncounted": lambda x: x[0], "counts": lambda x: x[1]}, [0.5, 0.5]), callback, 20)
    assert callback.violated == ["counts"]


@pytest.mark.parametrize(
    ("callback", "cap"),
    [
        (DualAscent(partial(torch.optim.SGD, lr=1.0), max_multiplier=3.0), "multiplier reached its cap of 3"),
        (FeasibilityGrowth(max_coefficient=2.0, every_n_steps=1), "coefficient reached its cap of 2"),
        (AugmentedLagrangian(every_n_steps=5, max_coefficient=2.0), "coefficient reached its cap of 2"),
    ],
)
def test_a_cap_that_was_reached_is_told(callback: Any, cap: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        solve((away((2, 1)), {"never": lambda x: x[0].square() + 1}, [0.5, 0.0]), callback, 200)
    assert any("'never' still does not hold" in r.message and cap in r.message for r in caplog.records)


def test_growth_leaves_satisfied_constraints_alone() -> None:
    callback = FeasibilityGrowth(initial=1.0, growth_factor=2.0, every_n_steps=1, max_coefficient=50)
    module = solve(PROGRAMS["one of two"][0], callback, 100)
    assert module.steering.penalty_coefficient[0] > 1
    assert module.steering.penalty_coefficient[1] == 1


def test_dual_ascent_is_coopers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same slacks through cooper's own multiplier and its projection."""
    cooper = pytest.importorskip("cooper")
    slacks = torch.tensor([0.5, 0.2, -0.4, -0.6, 0.1, 0.3], dtype=torch.float64)
    for ours, factory in (
        (DualAscent(partial(torch.optim.SGD, lr=0.3)), partial(torch.optim.SGD, lr=0.3)),
        (NuPI(lr=0.3, proportional=2.0, nu=0.4),
         partial(cooper.optim.nuPI, lr=0.3, Kp=torch.tensor(2.0), Ki=torch.tensor(1.0), ema_nu=0.4)),
    ):  # fmt: skip
        module = Program(away((0, 0)), {"g": lambda x: x[0]}, [0.0, 0.0], 0.1)
        ours.start(None, module.steering)  # type: ignore[arg-type]
        multiplier = cooper.multipliers.DenseMultiplier(num_constraints=1, dtype=torch.float64)
        multiplier.set_constraint_type(cooper.ConstraintType.INEQUALITY)
        optimizer = factory(multiplier.parameters(), maximize=True)
        for slack in slacks:
            ours.update(None, module.steering, _violations(slack))  # type: ignore[arg-type]
            optimizer.zero_grad()
            (multiplier() * slack).sum().backward()
            optimizer.step()
            multiplier.post_step_()
            torch.testing.assert_close(module.steering.multiplier, multiplier().detach())


def _violations(slack: Tensor) -> Any:
    from constrained_diffusion.callbacks import Violations

    return Violations(slack[None].relu().square(), slack[None])


def test_without_cooper_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name.startswith("cooper"):
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=re.escape(install_hint("dual"))):
        NuPI()


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_controller_goes_on_from_a_checkpoint(controller: str, tmp_path: Path) -> None:
    program, steps = PROGRAMS["one of two"][0], 40
    data = DataLoader(torch.zeros(10, 1), batch_size=1)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def fit(epochs: int, checkpoint: str | None = None) -> Program:
        module, callback = Program(*program, lr=0.02), CONTROLLERS[controller]()
        trainer = Trainer(max_epochs=epochs, callbacks=[callback], enable_checkpointing=False, **quiet)  # type: ignore[arg-type]
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    fit(2)
    resumed, whole = fit(steps // 10, str(tmp_path / "2.ckpt")), fit(steps // 10)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FixedPenalty(-1.0), "coefficient and stop_below >= 0, got -1.0"),
        (lambda: FeasibilityGrowth(growth_factor=1.0), "growth_factor > 1"),
        (lambda: DualAscent(initial=2.0, max_multiplier=1.0), "0 <= initial <= max_multiplier"),
        (lambda: AugmentedLagrangian(progress=1.5), "0 < progress < 1"),
        (lambda: AugmentedLagrangian(slack_tolerance=-1), "slack_tolerance >= 0, got -1"),
        (lambda: PenaltyScheduler(smoothing=1.0), "whole number of steps to average, at least 2; got 1.0"),
        (lambda: PenaltyScheduler(smoothing=2.5), "in \\[0, 1\\), or a whole number of steps .* got 2.5"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()
