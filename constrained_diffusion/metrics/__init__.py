"""What is measured on samples."""

from constrained_diffusion.metrics.classes import ClassEvaluation
from constrained_diffusion.metrics.evaluation import Evaluation
from constrained_diffusion.metrics.plan_evaluation import PlanEvaluation
from constrained_diffusion.metrics.polymer_evaluation import PolymerEvaluation
from constrained_diffusion.metrics.proportion import ViolationRate
from constrained_diffusion.metrics.typical import NoiseProbability

__all__ = ["ClassEvaluation", "Evaluation", "NoiseProbability", "PlanEvaluation", "PolymerEvaluation", "ViolationRate"]
