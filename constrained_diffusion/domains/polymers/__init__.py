"""Polymers: repeat units as tokens, what makes one valid, which of two is preferred."""

from constrained_diffusion.domains.polymers.merit import BradleyTerryMerit
from constrained_diffusion.domains.polymers.polymer_evaluation import PolymerEvaluation
from constrained_diffusion.domains.polymers.unet1d import Unet1D

__all__ = [
    "BradleyTerryMerit",
    "PolymerEvaluation",
    "Unet1D",
]
