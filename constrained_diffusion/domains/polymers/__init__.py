"""Polymers: repeat units as tokens, what makes one valid, which of two is preferred."""

from constrained_diffusion.domains.polymers.merit import BradleyTerryMerit
from constrained_diffusion.domains.polymers.polymer_evaluation import PolymerEvaluation

__all__ = [
    "BradleyTerryMerit",
    "PolymerEvaluation",
]
