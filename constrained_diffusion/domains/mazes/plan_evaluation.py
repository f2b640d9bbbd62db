"""`PlanEvaluation`: do plans keep out of the zones and the walls, are they plans still, and can they be executed?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.domains.mazes import plan_metrics
from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones
from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.plan_figures import DECLARED, PlanFigures
from constrained_diffusion.domains.mazes.plan_metrics import Zones
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.domains.mazes.smoothness import STILL, acceleration, curvature, step_lengths
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime import assets, untrusted


class PlanEvaluation(Evaluation):
    """How many plans enter a forbidden zone or a wall, on paper and in the simulator, and what became of the rest.

    The zones are those of the bound constraints, at their true radius: a margin that a constraint adds for training is
    no part of the verdict. Geometry is this judge's own, exact, in float64, on the CPU.

    Args:
        maze: "open", "umaze", "medium", "large", or the rows of a map; see `Maze.of`.
        reference: zoo weights or a folder whose `statistics.json` holds what `plan_statistics` found in their data.
            None leaves out the figures that compare steps with the data's.
        executed: how many of the first samples are executed in the simulator, which needs the extra `maze`; 0 for none.
        goal: (x, y) that plans shall reach, in cells; None where there is no goal.
        still_start: whether the executed ball starts at rest, rather than with the plan's own velocity.

    Raises:
        ValueError: no such maze, a goal in a wall, a negative number of plans to execute, or statistics without
            `step_p999`.
        FileNotFoundError: the reference is neither the name of zoo weights nor a folder with statistics.
        ImportError: plans are to be executed, but the simulator is not installed.
    """

    subject = "plans in a zone"
    figures = DECLARED
    overlays_legend = (
        "All plans of the same seeds, from blue (start) to orange (end). Red discs: forbidden zones; dark red: points "
        "inside one. Star: the goal."
    )

    def __init__(
        self,
        maze: str | list[str] = "medium",
        reference: str | None = "maze2d_planner",
        executed: int = 200,
        goal: list[float] | None = None,
        still_start: bool = False,
    ) -> None:
        super().__init__()
        self.maze = Maze.of(maze)
        if executed < 0:
            raise ValueError(f"executed counts the plans to execute, so it is 0 or more, got {executed}.")
        if executed:
            from constrained_diffusion.domains.mazes.simulator import require_simulator

            require_simulator()  # now, not after hours of training
        self.still_start = still_start
        if goal is not None:
            self.maze.check_free(goal, "goal")
        self.executed, self.goal = executed, None if goal is None else torch.tensor(goal, dtype=torch.float64)
        self.long_step = None if reference is None else _long_step(reference)
        self.zones: Zones | None = None
        self.running = PlanFigures()
        self._seen = 0

    def bind(self, constraints: Sequence[Constraint]) -> None:
        """Take the zones of all `ForbiddenZones`; forgets all samples."""
        found = []
        for constraint in constraints:
            if isinstance(constraint, ForbiddenZones):
                centres = constraint.centres.detach().cpu().double()
                radii = torch.as_tensor(constraint.radius).detach().cpu().double()
                found.append((centres, radii.expand(len(centres))))
        self.zones = Zones(*(torch.cat(parts) for parts in zip(*found, strict=True))) if found else None
        self.reset()

    @torch.no_grad()
    def update(self, clean: Tensor) -> None:
        """Judge one batch of plans `(B, tokens, frames, channels)`, in cells; the first `executed` are executed.

        Raises:
            ValueError: they are no plans, or some are not finite.
        """
        paths = points(clean).detach().cpu().double()
        if not bool(paths.isfinite().all()):
            raise ValueError(
                "an evaluation expects finite samples, got NaN or infinity; the model has diverged, so lower the "
                "learning rate or the penalty coefficient, or test an earlier checkpoint."
            )
        route, inner = _route(paths, *clean.shape[1:3])
        steps = step_lengths(route)
        moving = steps > STILL
        figures = {
            "wall": self._walled(paths),
            "moving": moving.sum(1),
            "curvature": curvature(inner),
            "acceleration": acceleration(inner),
        }
        if self.long_step is not None:
            figures["long"] = (steps > self.long_step).sum(1)
        if self.zones is not None:
            figures |= self._zone_figures(paths, self.zones)
        if self.goal is not None:
            figures |= self._goal_figures(paths, self.goal)
        executed, errors = self._execute(route, inner)
        self.running.update(figures | executed, steps[moving], errors)

    def compute(self) -> dict[str, Any]:
        """Return {"violation_rate", "violation_upper_95", "n", "metrics"}; call it on every rank.

        A figure that was not measured is None; without zones, that is all about zones. Lengths are in cells.

        | metric | what |
        |---|---|
        | violation_rate, beside the metrics | share of plans with a point in a zone |
        | plan_segment_violation_rate | share of plans with a point or segment in a zone |
        | point_violation_rate | share of points in a zone |
        | depth_mean, barrier_min | mean depth of each plan's deepest point; the least barrier value of all |
        | wall_collision_rate | share of plans with a point or segment in a wall |
        | long_step_rate, long_step | share of moving steps above the p99.9 of the data's, which is `long_step` |
        | step_p99, step_max, curvature, acceleration | see `metrics.smoothness` |
        | goal_reached_rate, goal_at_end_rate, first_reach | share of plans ever within 0.5, at last; mean frame |
        | executed_violation_rate, executed_goal_reached_rate, .. | the same of what the ball did; with segments |
        | tracking_p95 | p95 of the ball's distance to its plan |
        | d4rl_score | mean of D4RL's normalised score of what the ball did, from 0 to about 100 |

        Raises:
            ValueError: no sample was measured.
        """
        return self.running.compute(self.long_step)

    def reset(self) -> None:
        """Forget all samples."""
        self.running.reset()
        self._seen = 0

    @torch.no_grad()
    def marks(self, clean: Tensor) -> list[str]:
        """Return "violation" where a point or segment is in a zone, else "invalid" where one is in a wall, else "".

        Plans that are not finite are invalid: a diverged model can still be drawn.
        """
        paths = points(clean).detach().cpu().double()
        broken = ~paths.isfinite().flatten(1).all(1)
        paths = paths.masked_fill(broken[:, None, None], 0.0)
        invalid = self._walled(paths) | broken
        violation = self._violating(paths, self.zones) & ~broken if self.zones is not None else broken & False
        rows = zip(violation.tolist(), invalid.tolist(), strict=True)
        return ["violation" if v else "invalid" if i else "" for v, i in rows]

    def pictures(self, clean: Tensor) -> Tensor:
        """Draw each plan; see `maze.drawing`."""
        from constrained_diffusion.domains.mazes.drawing import plan_pictures

        centres, radii = self.zones or (None, 0.0)
        return plan_pictures(clean, self.maze, centres, radii, self.goal)

    @torch.no_grad()
    def overlays(self, clean: Tensor) -> dict[str, bytes]:
        """Draw all plans at once, and, where plans are executed, what the ball did."""
        from constrained_diffusion.domains.mazes.drawing import plan_overlays

        finite, executed = clean[clean.flatten(1).isfinite().all(1)], None
        if self.executed and len(finite):
            route, inner = _route(points(finite).detach().cpu().double(), *clean.shape[1:3])
            executed = self._driven(route, inner, route.shape[1])
        centres, radii = self.zones or (None, 0.0)
        return plan_overlays(clean, self.maze, centres, radii, self.goal, executed)

    def _driven(self, route: Tensor, inner: Tensor, steps: int) -> Tensor:
        """Return where the ball was, `(n, steps, 2)`, when it followed the plans."""
        from constrained_diffusion.domains.mazes.simulator import execute, planned_velocities

        velocity = planned_velocities(inner)[:, 0] * (not self.still_start)
        return execute(self.maze, route, steps, velocity).positions

    def _walled(self, paths: Tensor) -> Tensor:
        inside, through = (
            plan_metrics.points_in_walls(paths, self.maze),
            plan_metrics.segments_in_walls(paths, self.maze),
        )
        return inside.any(1) | through.any(1)

    @staticmethod
    def _violating(paths: Tensor, zones: Zones) -> Tensor:
        return plan_metrics.points_in_zones(paths, zones).any(1) | plan_metrics.segments_in_zones(paths, zones).any(1)

    def _zone_figures(self, paths: Tensor, zones: Zones) -> dict[str, Tensor]:
        inside = plan_metrics.points_in_zones(paths, zones)
        return {
            "point_violation": inside.any(1),
            "violation": self._violating(paths, zones),
            "share_inside": inside.double().mean(1),
            "depth": plan_metrics.depth(paths, zones),
            "barrier": plan_metrics.barrier(paths, zones),
        }

    @staticmethod
    def _goal_figures(paths: Tensor, goal: Tensor) -> dict[str, Tensor]:
        first = plan_metrics.first_reach(paths, goal)
        at_end = plan_metrics.goal_distances(paths[:, -1:], goal)[:, 0] <= plan_metrics.GOAL_RADIUS
        return {"reached": ~first.isnan(), "at_end": at_end, "first_reach": first}

    def _execute(self, route: Tensor, inner: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return figures of executed plans, `(k,)` with k <= B each, and the tracking errors; of the first samples."""
        count = self._turn(len(route))
        if not count:
            return {}, route.new_zeros(0)
        from constrained_diffusion.domains.mazes.simulator import tracking_error

        scale = None if self.goal is None else plan_metrics.d4rl_scale(self.maze)
        steps = max(route.shape[1], scale.frames if scale else 0)
        ball = self._driven(route[:count], inner[:count], steps)
        figures: dict[str, Tensor] = {"executed": torch.ones(count)}
        if self.zones is not None:
            figures["executed_violation"] = self._violating(ball, self.zones)
        if self.goal is not None:
            figures |= {f"executed_{name}": value for name, value in self._goal_figures(ball, self.goal).items()}
            if scale is not None:
                figures["d4rl_score"] = plan_metrics.d4rl_score(ball, self.goal, scale)
        return figures, tracking_error(route[:count], ball[:, : route.shape[1]]).flatten()

    def _turn(self, rows: int) -> int:
        """Return how many of this rank's next `rows` samples are among the first `executed` of all ranks."""
        on = torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if on else (0, 1)
        share = len(range(rank, self.executed, world))  # ranks take samples in turn
        count = max(0, min(rows, share - self._seen))
        self._seen += rows
        return count


def _route(paths: Tensor, tokens: int, frames: int) -> tuple[Tensor, Tensor]:
    """Return paths without their stand at both ends: with one standing frame left at each, and with none.

    Curvature and acceleration leave out how stand and motion meet; a jump there is a long step all the same.
    """
    if tokens < 3:
        return paths, paths
    return paths[:, frames - 1 : paths.shape[1] - frames + 1], paths[:, frames:-frames]


def _long_step(reference: str) -> float:
    """Return the p99.9 of the steps in the data behind a planner."""
    file = (assets.path(reference) if reference in assets.available() else Path(reference)) / "statistics.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"plans are compared with a planner's statistics.json, but there is none at '{file}'; give the name of zoo "
            "weights that hold one, such as 'maze2d_planner', a folder with one, or None for no comparison."
        )
    value = untrusted.read_json(file).get("step_p999")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError(
            f"'{file}' should hold step_p999, a length in cells, but has {value!r}; write what plan_statistics returns."
        )
    return float(value)
