"""What a sample must satisfy (`Constraint`), what it should maximise (`Reward`), and the registry of both."""

from constrained_diffusion.objectives.base import Constraint, Reward, StepRecord
from constrained_diffusion.objectives.converters import Feasibility, RewardAtLeast, WeightedSum
from constrained_diffusion.objectives.registry import Objective, available, get, register

__all__ = [
    "Constraint",
    "Feasibility",
    "Objective",
    "Reward",
    "RewardAtLeast",
    "StepRecord",
    "WeightedSum",
    "available",
    "get",
    "register",
]
