"""What a sample must satisfy (`Constraint`), what it should maximise (`Reward`), and the registry of both."""

from constrained_diffusion.objectives.base import Constraint, Reward, StepRecord
from constrained_diffusion.objectives.converters import Feasibility, RewardAtLeast, WeightedSum
from constrained_diffusion.objectives.measure import measure_constraint, measure_reward
from constrained_diffusion.objectives.registry import Objective, available, get, register
from constrained_diffusion.objectives.trial import check_built, check_objective

__all__ = [
    "Constraint",
    "Feasibility",
    "Objective",
    "Reward",
    "RewardAtLeast",
    "StepRecord",
    "WeightedSum",
    "available",
    "check_built",
    "check_objective",
    "get",
    "measure_constraint",
    "measure_reward",
    "register",
]
