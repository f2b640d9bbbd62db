"""What is measured on samples."""

from constrained_diffusion.metrics.classes import ClassEvaluation
from constrained_diffusion.metrics.evaluation import Evaluation
from constrained_diffusion.metrics.proportion import ViolationRate

__all__ = ["ClassEvaluation", "Evaluation", "ViolationRate"]
