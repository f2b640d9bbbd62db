"""Constraints, one file per domain."""

from constrained_diffusion.constraints.classification import ClassProbability
from constrained_diffusion.constraints.classifiers import DigitCNN, DigitResNet, PretrainedClassifier
from constrained_diffusion.constraints.continuity import Continuity
from constrained_diffusion.constraints.divergence import KLFromPretrained
from constrained_diffusion.constraints.walls import Walls
from constrained_diffusion.constraints.zones import ForbiddenZones

__all__ = [
    "ClassProbability",
    "Continuity",
    "DigitCNN",
    "DigitResNet",
    "ForbiddenZones",
    "KLFromPretrained",
    "PretrainedClassifier",
    "Walls",
]
