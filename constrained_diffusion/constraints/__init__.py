"""Constraints, one file per domain."""

from constrained_diffusion.constraints.classification import ClassProbability
from constrained_diffusion.constraints.classifiers import DigitCNN, DigitResNet, PretrainedClassifier
from constrained_diffusion.constraints.divergence import KLFromPretrained

__all__ = ["ClassProbability", "DigitCNN", "DigitResNet", "KLFromPretrained", "PretrainedClassifier"]
