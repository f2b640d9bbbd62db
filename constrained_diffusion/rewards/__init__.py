"""Rewards, one file per domain."""

from constrained_diffusion.rewards.aesthetic import LAIONAesthetic
from constrained_diffusion.rewards.classification import LogOdds
from constrained_diffusion.rewards.combined import WeightedSum
from constrained_diffusion.rewards.goal import NearGoal
from constrained_diffusion.rewards.jpeg import JPEGCompressibility
from constrained_diffusion.rewards.merit import BradleyTerryMerit
from constrained_diffusion.rewards.pixels import Brightness, Darkness, Ink
from constrained_diffusion.rewards.preference import CLIPScore, HPSv2, PickScore

__all__ = [
    "BradleyTerryMerit",
    "Brightness",
    "CLIPScore",
    "Darkness",
    "HPSv2",
    "Ink",
    "JPEGCompressibility",
    "LAIONAesthetic",
    "LogOdds",
    "NearGoal",
    "PickScore",
    "WeightedSum",
]
