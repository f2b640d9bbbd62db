"""The running figures of `PlanEvaluation`: one row per plan, gathered over ranks, so that ranks agree with one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from constrained_diffusion.domains.mazes.smoothness import quantile
from constrained_diffusion.evaluation import Figure
from constrained_diffusion.statistics import clopper_pearson_upper

DECLARED = (  #: in the order of reports
    Figure("plan_segment_violation_rate", "plans with a point or segment in a zone", "rate", "less"),
    Figure("plan_segment_violation_upper_95", "its upper 95 % bound", "rate", "less"),
    Figure("point_violation_rate", "points in a zone", "rate", "less"),
    Figure("executed_violation_rate", "executed plans in a zone", "rate", "less", headline=True),
    Figure("executed_violation_upper_95", "its upper 95 % bound, executed", "rate", "less"),
    Figure("executed_n", "executed plans", "count"),
    Figure("depth_mean", "mean depth of the deepest point, cells", "number", "less"),
    Figure("barrier_min", "least barrier value", "number", "more"),
    Figure("wall_collision_rate", "plans in a wall", "rate", "less", headline=True),
    Figure("long_step_rate", "steps longer than the data's p99.9", "rate", "less", headline=True),
    Figure("long_step", "the data's p99.9 step, cells"),
    Figure("step_p99", "p99 of the steps, cells"),
    Figure("step_max", "longest step, cells"),
    Figure("tracking_p95", "p95 of the ball's distance to its plan, cells", "number", "less"),
    Figure("goal_reached_rate", "plans that reach the goal", "rate", "more"),
    Figure("goal_at_end_rate", "plans that end at the goal", "rate", "more"),
    Figure("first_reach", "first frame at the goal", "number", "less"),
    Figure("executed_goal_reached_rate", "executed plans that reach the goal", "rate", "more"),
    Figure("executed_goal_at_end_rate", "executed plans that end at the goal", "rate", "more"),
    Figure("executed_first_reach", "first frame at the goal, executed", "number", "less"),
    Figure("d4rl_score", "D4RL score", "number", "more"),
    Figure("curvature", "curvature", "number", "less"),
    Figure("acceleration", "acceleration", "number", "less"),
)


class PlanFigures(Metric):
    """A table of figures per plan, NaN where one was not measured, and the pooled steps and tracking errors.

    Rows in float32 hold counts and shares of a plan without loss that matters; they are averaged in float64.
    """

    is_differentiable = False
    full_state_update = False

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("point_violation", "violation", "share_inside", "depth", "barrier", "wall", "moving", "long"),
        *("curvature", "acceleration", "reached", "at_end", "first_reach"),
        *("executed", "executed_violation", "executed_reached", "executed_at_end", "executed_first_reach"),
        "d4rl_score",
    )

    rows: list[Tensor]
    steps: list[Tensor]
    errors: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("rows", "steps", "errors"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, figures: dict[str, Tensor], steps: Tensor, errors: Tensor) -> None:
        """Take in one batch.

        Args:
            figures: per name of `COLUMNS`, `(k,)` with k <= B: the figures of the first k of the batch's plans. Those
                of "wall", "moving" are there for all.
            steps: `(s,)`, lengths of steps.
            errors: `(e,)`, distances of executed positions to their plans.
        """
        rows = torch.full((len(figures["wall"]), len(self.COLUMNS)), torch.nan)
        for name, values in figures.items():
            rows[: len(values), self.COLUMNS.index(name)] = values.float().cpu()
        for state, values in ((self.rows, rows), (self.steps, steps), (self.errors, errors)):
            state.append(values.float().to(self.device))

    def compute(self, long_step: float | None = None) -> dict[str, Any]:
        """Return {"violation_rate", "violation_upper_95", "n", "metrics"}, JSON-ready; see `PlanEvaluation`.

        Raises:
            ValueError: no plan was measured.
        """
        if sum(map(len, self.rows)) == 0:
            raise ValueError("an evaluation needs at least one sample, got none; call update before compute.")
        rows, steps, errors = (dim_zero_cat(s).double().cpu() for s in (self.rows, self.steps, self.errors))
        column = {name: rows[:, i][~rows[:, i].isnan()] for i, name in enumerate(self.COLUMNS)}

        def mean(name: str) -> float | None:
            return float(column[name].mean()) if len(column[name]) else None

        def upper(name: str) -> float | None:
            values = column[name]
            return clopper_pearson_upper(round(float(values.sum())), len(values)) if len(values) else None

        metrics: dict[str, float | int | None] = {
            "plan_segment_violation_rate": mean("violation"),
            "plan_segment_violation_upper_95": upper("violation"),
            "point_violation_rate": mean("share_inside"),
            "executed_violation_rate": mean("executed_violation"),
            "executed_violation_upper_95": upper("executed_violation"),
            "executed_n": len(column["executed"]),
            "depth_mean": mean("depth"),
            "barrier_min": float(column["barrier"].min()) if len(column["barrier"]) else None,
            "wall_collision_rate": mean("wall"),
            "long_step": long_step,
            "long_step_rate": _ratio(column["long"], column["moving"]),
            "step_p99": quantile(steps, 0.99) if len(steps) else None,
            "step_max": float(steps.max()) if len(steps) else None,
            "tracking_p95": quantile(errors, 0.95) if len(errors) else None,
            "goal_reached_rate": mean("reached"),
            "goal_at_end_rate": mean("at_end"),
            "executed_goal_reached_rate": mean("executed_reached"),
            "executed_goal_at_end_rate": mean("executed_at_end"),
            **{
                name: mean(name)
                for name in ("curvature", "acceleration", "first_reach", "executed_first_reach", "d4rl_score")
            },
        }
        return {
            "violation_rate": mean("point_violation"),
            "violation_upper_95": upper("point_violation"),
            "n": len(rows),
            "metrics": metrics,
        }


def _ratio(counts: Tensor, totals: Tensor) -> float | None:
    return float(counts.sum() / totals.sum()) if len(counts) and float(totals.sum()) > 0 else None
