"""`PlanEvaluation` on plans whose every figure is known, executed in the simulator, on one process and on two."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones
from constrained_diffusion.domains.mazes.plan_evaluation import PlanEvaluation
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.reports.table import before_after_table
from constrained_diffusion.runtime import assets
from constrained_diffusion.runtime.distribution import install_hint

SIMULATED = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mujoco", "gymnasium_robotics")),
    reason="executing plans needs the extra maze",
)


class Discs(ForbiddenZones):
    def __init__(self, centres: list[list[float]], radius: float | Tensor, margin: float = 0.0) -> None:
        Constraint.__init__(self)
        self.register_buffer("centres", torch.tensor(centres))
        self.radius, self.margin = radius, margin

    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).sum(1)


class Smooth(Constraint):
    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).sum(1)


def line(start: tuple[float, float], end: tuple[float, float], frames: int = 20) -> Tensor:
    """A plan `(1, 4, 10, 2)` or of other length: straight, at constant speed, between standing tokens of 10 frames."""
    a, b = torch.tensor(start), torch.tensor(end)
    path = a + torch.linspace(0, 1, frames)[:, None] * (b - a)
    return torch.cat([a.expand(10, 2), path, b.expand(10, 2)]).reshape(1, -1, 10, 2)


# In "open", x from -2.5 to 2.5 and y from -1.5 to 1.5 are free. The zone is around the origin.
ZONE = Discs([[0.0, 0.0]], 0.3)
CLEAR = line((-2, 1), (2, 1))
THROUGH = line((-1, 0), (1, 0))  # 20 points 2 / 19 apart: six of them within 0.3
JUMPING = line((-2, 0.1), (2, 0.1), frames=10)  # 4 / 9 apart: none within 0.3 of the middle but its segment
WALLED = line((0, 1), (0, 2))


def evaluation(**settings: object) -> PlanEvaluation:
    made = PlanEvaluation(**{"maze": "open", "reference": None, "executed": 0, **settings})
    made.bind([ZONE])
    return made


@pytest.fixture
def reference(tmp_path: Path) -> str:
    (tmp_path / "statistics.json").write_text(json.dumps({"step_p999": 0.3, "step_p99": 0.2, "tracking_p95": 0.01}))
    return str(tmp_path)


def test_the_plans_are_what_they_are_said_to_be() -> None:
    distances = [float(plan.flatten(0, 2).norm(dim=1).min()) for plan in (CLEAR, THROUGH, JUMPING)]
    assert distances == pytest.approx([math.hypot(1, 2 / 19), 1 / 19, math.hypot(0.1, 2 / 9)], abs=1e-6)


def test_the_figures_of_known_plans(reference: str) -> None:
    # JUMPING has points 0.2437 off the middle: shift it so that only its segments enter
    jumping = JUMPING + torch.tensor([0.0, 0.15])  # nearest points at (2/9, 0.25): 0.3345
    judge = evaluation(reference=reference)
    judge.update(torch.cat([CLEAR, THROUGH, WALLED]))
    judge.update(jumping.repeat(2, 1, 1, 1))
    result = judge.compute()
    assert (result["violation_rate"], result["n"]) == (1 / 5, 5)
    assert result["violation_upper_95"] == pytest.approx(stats.beta.ppf(0.95, 2, 4), abs=1e-9)
    metrics = result["metrics"]
    assert metrics["plan_segment_violation_rate"] == pytest.approx(3 / 5)
    assert metrics["plan_segment_violation_upper_95"] == pytest.approx(stats.beta.ppf(0.95, 4, 2), abs=1e-9)
    assert metrics["point_violation_rate"] == pytest.approx(6 / 40 / 5)
    assert metrics["depth_mean"] == pytest.approx((0.3 - 1 / 19) / 5, abs=1e-6)
    assert metrics["barrier_min"] == pytest.approx((1 / 19 / 0.3) ** 2 - 1, abs=1e-5)
    assert metrics["wall_collision_rate"] == pytest.approx(1 / 5)
    assert metrics["long_step_rate"] == pytest.approx(18 / (3 * 19 + 18))
    assert metrics["long_step"] == 0.3
    assert metrics["step_max"] == pytest.approx(4 / 9)
    assert metrics["step_p99"] == pytest.approx(4 / 9)
    assert metrics["curvature"] == pytest.approx(0, abs=1e-6)
    unmeasured = ("executed_violation_rate", "tracking_p95", "goal_reached_rate", "first_reach", "d4rl_score")
    assert [metrics[name] for name in unmeasured] == [None] * 5
    assert metrics["executed_n"] == 0
    assert json.loads(json.dumps(result)) == result
    table = before_after_table({"before": result, "after": result})
    assert "20.0 % (65.8 %)" in table
    assert "plan segment violation rate" in table
    judge.reset()
    judge.update(CLEAR)
    assert (judge.compute()["n"], judge.compute()["violation_rate"]) == (1, 0)


def test_a_jump_across_a_wall_is_a_collision() -> None:
    judge = evaluation(maze="umaze")
    jump = line((-1, 1), (-1, -1), frames=10)[:, [0, 2]]  # two standing tokens on both sides of the wall
    judge.update(jump)
    assert judge.compute()["metrics"]["wall_collision_rate"] == 1
    assert judge.marks(jump) == ["invalid"]


def test_plans_of_any_number_of_channels() -> None:
    judge = evaluation()
    judge.update(torch.cat([THROUGH, torch.zeros(1, 4, 10, 4)], dim=-1))
    assert judge.compute()["violation_rate"] == 1


def test_smoothness_leaves_the_stand_out() -> None:
    """A bend in the middle of the motion counts, the start and the stop do not, and a jump to the stand is long."""
    judge = evaluation()
    bent = torch.cat([line((-1, 1), (0, 1), 10)[:, :-1], line((0.1, 1), (0.1, 0), 10)[:, 1:]], dim=1)
    judge.update(bent)  # 9 steps right, one of 0.1 to the right, 9 down
    metrics = judge.compute()["metrics"]
    assert metrics["curvature"] == pytest.approx(1 / 18, rel=1e-3)
    shaken = bent.clone()
    shaken[:, 0] += 0.01 * torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    judge.reset()
    judge.update(shaken)
    assert judge.compute()["metrics"]["curvature"] == pytest.approx(1 / 18, rel=1e-3)
    shaken[:, 0, :, 0] -= 1
    judge.reset()
    judge.update(shaken)
    assert judge.compute()["metrics"]["step_max"] == pytest.approx(1, abs=0.05)


def test_goals() -> None:
    judge = evaluation(goal=[2.0, 1.0])
    judge.update(torch.cat([CLEAR, THROUGH, torch.cat([CLEAR, CLEAR.flip(1, 2)], dim=1)[:, 2:6]]))
    metrics = judge.compute()["metrics"]
    assert metrics["goal_reached_rate"] == pytest.approx(2 / 3)
    assert metrics["goal_at_end_rate"] == pytest.approx(1 / 3)
    # steps of 4 / 19: the 17th point of 20 is 0.42 before the end; the second plan lacks 20 frames
    assert metrics["first_reach"] == pytest.approx(((10 + 17) + (27 - 20)) / 2)


def test_marks() -> None:
    jumping = JUMPING + torch.tensor([0.0, 0.15])
    both = line((0, -1), (0, 2))
    broken = CLEAR.clone()
    broken[0, 1, 3, 0] = torch.nan
    judge = evaluation()
    assert judge.marks(torch.cat([CLEAR, THROUGH])) == ["", "violation"]
    assert judge.marks(jumping) == ["violation"]
    assert judge.marks(torch.cat([WALLED, both, broken])) == ["invalid", "violation", "invalid"]
    judge.bind([])
    assert judge.marks(torch.cat([CLEAR, THROUGH, WALLED])) == ["", "", "invalid"]


def test_zones_come_from_all_constraints_that_have_some_at_their_true_radius() -> None:
    judge = evaluation()
    judge.bind([Smooth(), Discs([[0.0, 0.0], [1.0, 0.0]], 0.3, margin=5.0), Discs([[0.0, 1.0]], torch.tensor([0.2]))])
    assert judge.zones is not None
    assert judge.zones.centres.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert judge.zones.radii.tolist() == pytest.approx([0.3, 0.3, 0.2])
    judge.update(CLEAR)
    assert judge.compute()["violation_rate"] == 1  # by the third zone
    judge.bind([ZONE])  # another fit: nothing of the first one is left
    judge.update(CLEAR)
    assert (judge.compute()["violation_rate"], judge.compute()["n"]) == (0, 1)


def test_without_zones_there_is_no_violation() -> None:
    judge = evaluation()
    judge.bind([Smooth()])
    judge.update(THROUGH)
    result = judge.compute()
    assert (result["violation_rate"], result["violation_upper_95"], result["n"]) == (None, None, 1)
    assert (result["metrics"]["barrier_min"], result["metrics"]["point_violation_rate"]) == (None, None)
    assert result["metrics"]["wall_collision_rate"] == 0


def test_a_zoo_name_finds_its_statistics(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "zoo" / "tiny_planner"
    folder.mkdir(parents=True)
    (folder / "CARD.md").write_text("a card")
    (folder / "statistics.json").write_text('{"step_p999": 0.05}')
    monkeypatch.setattr(assets, "FOLDER", tmp_path / "zoo")
    assert PlanEvaluation(reference="tiny_planner", executed=0).long_step == 0.05


def test_a_copy_counts_for_itself_and_nothing_is_a_weight() -> None:
    judge = evaluation()
    judge.update(CLEAR)
    other = copy.deepcopy(judge)
    other.update(THROUGH)
    assert (judge.compute()["n"], other.compute()["n"]) == (1, 2)
    assert not judge.state_dict()


def test_inference_mode_and_half_precision_change_nothing() -> None:
    judge = evaluation(goal=[2.0, 1.0])
    judge.update(THROUGH)
    expected = judge.compute()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        judge.reset()
        judge.update(THROUGH)
        assert judge.compute() == expected
    judge.update(THROUGH)
    assert judge.to(torch.bfloat16).compute()["metrics"]["step_max"] == expected["metrics"]["step_max"]


@SIMULATED
def test_plans_are_executed() -> None:
    """Of four plans the first three: one through the zone, one clear of it, one into a wall, which the ball is not."""
    judge = evaluation(executed=3)
    slow = [line(*ends, frames=200) for ends in [((-2, 0), (2, 0)), ((-2, 1), (2, 1)), ((0, 1), (0, 2))]]
    judge.update(torch.cat(slow[:2]))
    judge.update(torch.cat([slow[2], slow[0]]))
    judge.update(slow[0])
    metrics = judge.compute()["metrics"]
    assert metrics["executed_n"] == 3
    assert metrics["executed_violation_rate"] == pytest.approx(1 / 3)
    assert metrics["executed_violation_upper_95"] == pytest.approx(stats.beta.ppf(0.95, 2, 2), abs=1e-9)
    assert 0 < metrics["tracking_p95"] < 0.05
    judge.reset()
    judge.update(torch.cat(slow))
    assert judge.compute()["metrics"]["executed_n"] == 3


@SIMULATED
def test_the_executed_ball_reaches_the_goal_and_stays() -> None:
    """On D4RL's medium maze for 600 frames, from its upper left cell to the one below: reached after so many frames."""
    judge = evaluation(maze="medium", executed=5, goal=[-2.5, 1.5])
    judge.update(torch.cat([line((-2.5, 2.5), (-2.5, 1.5), 100), line((-2.5, 2.5), (-1.5, 2.5), 100)]))
    metrics = judge.compute()["metrics"]
    assert metrics["executed_goal_reached_rate"] == metrics["executed_goal_at_end_rate"] == 0.5
    reached = metrics["executed_first_reach"]
    assert reached == pytest.approx(50, abs=3)
    scores = [100 * (reward - 13.13) / (277.39 - 13.13) for reward in (600 - reached, 0)]
    assert metrics["d4rl_score"] == pytest.approx(sum(scores) / 2, abs=1e-4)


@SIMULATED
def test_the_ball_starts_with_the_speed_of_the_plan_or_at_rest() -> None:
    errors = []
    for still in (False, True):
        judge = evaluation(maze="medium", executed=1, goal=[-2.5, 1.5], still_start=still)
        judge.update(line((-2.5, 2.5), (-2.5, 1.5), 20))  # 5 cells per second
        errors.append(judge.compute()["metrics"]["executed_first_reach"])
    assert errors[0] == pytest.approx(11, abs=1)
    assert errors[1] > errors[0] + 5


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"0 or more, got -1"):
        evaluation(executed=-1)
    for goal in ([0.0], [9.0, 9.0], [0.0, 2.0], [math.nan, 0.0]):
        with pytest.raises(ValueError, match=r"a goal expects \[x, y\] in cells|the goal .* lies in a wall"):
            evaluation(goal=goal)
    with pytest.raises(ValueError, match="a maze expects at least three rows"):
        evaluation(maze="labyrinth")
    with pytest.raises(FileNotFoundError, match=r"none at '.*maze2d_planer/statistics.json'; give the name of zoo"):
        evaluation(reference="maze2d_planer")
    for wrong in ('{"step_p99": 1}', '{"step_p999": "1"}', '{"step_p999": 1e999}', '{"step_p999": true}'):
        (tmp_path / "statistics.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"statistics.json' should hold step_p999, a length in cells, but has"):
            evaluation(reference=str(tmp_path))
    with pytest.raises(ValueError, match=r"expected plans of shape \(B, tokens, frames, channels\)"):
        evaluation().update(torch.zeros(2, 1, 8, 8))
    for broken in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="finite samples, got NaN or infinity; the model has diverged"):
            evaluation().update(torch.full((1, 4, 10, 2), broken))
    nothing = evaluation()
    nothing.update(torch.zeros(0, 4, 10, 2))
    with pytest.raises(ValueError, match="at least one sample, got none; call update"):
        nothing.compute()
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("maze")) + ", or execute none"):
        evaluation(executed=1)


@SIMULATED
def test_two_ranks_give_the_figures_of_one(tmp_path: Path, run_program) -> None:  # type: ignore[no-untyped-def]
    """Also where one of them has no samples at all."""
    program = Path(__file__).with_name("plan_evaluation_ranks.py")
    answers = json.loads(run_program(program, tmp_path, 7))
    one = answers["one"][0]
    assert one["n"] == 21
    assert 0 < one["violation_rate"] < 1
    assert 0 < one["metrics"]["long_step_rate"] < 1
    assert one["metrics"]["executed_n"] == 7
    for rank in answers["two"]:
        for two, expected in zip(rank, answers["one"], strict=True):
            numbers = {name: value for name, value in expected["metrics"].items() if value is not None}
            metrics = {**expected["metrics"], **{k: pytest.approx(v, rel=1e-9) for k, v in numbers.items()}}
            assert two == {**expected, "metrics": metrics}
