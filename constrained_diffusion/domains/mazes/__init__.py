"""Mazes: geometry, recordings, the simulator; zones and walls that plans keep out of; planners."""

from constrained_diffusion.domains.mazes.barrier import ZoneBarrier
from constrained_diffusion.domains.mazes.continuity import Continuity
from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones
from constrained_diffusion.domains.mazes.goal import NearGoal
from constrained_diffusion.domains.mazes.held_ends import HeldEnds
from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.plan_evaluation import PlanEvaluation
from constrained_diffusion.domains.mazes.planners import RecurrentPlanner, TransformerPlanner
from constrained_diffusion.domains.mazes.projection import ZoneProjection
from constrained_diffusion.domains.mazes.walls import Walls

__all__ = [
    "Continuity",
    "ForbiddenZones",
    "HeldEnds",
    "Maze",
    "NearGoal",
    "PlanEvaluation",
    "RecurrentPlanner",
    "TransformerPlanner",
    "Walls",
    "ZoneBarrier",
    "ZoneProjection",
]
