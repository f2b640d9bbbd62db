"""Images: classifiers and judges, class removal, rewards of pixels and of learnt models."""

from constrained_diffusion.domains.images.aesthetic import LAIONAesthetic
from constrained_diffusion.domains.images.asked_evaluation import AskedClassEvaluation
from constrained_diffusion.domains.images.class_evaluation import ClassEvaluation
from constrained_diffusion.domains.images.class_probability import ClassProbability
from constrained_diffusion.domains.images.classifiers import DigitCNN, DigitResNet, PretrainedClassifier
from constrained_diffusion.domains.images.clip_rewards import CLIPScore, HPSv2, PickScore
from constrained_diffusion.domains.images.jpeg import JPEGCompressibility
from constrained_diffusion.domains.images.log_odds import LogOdds
from constrained_diffusion.domains.images.pixels import Brightness, Darkness, Ink

__all__ = [
    "AskedClassEvaluation",
    "Brightness",
    "CLIPScore",
    "ClassEvaluation",
    "ClassProbability",
    "Darkness",
    "DigitCNN",
    "DigitResNet",
    "HPSv2",
    "Ink",
    "JPEGCompressibility",
    "LAIONAesthetic",
    "LogOdds",
    "PickScore",
    "PretrainedClassifier",
]
