"""Denoisers: one adapter for foreign networks, loading, exporting."""

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.prediction import Prediction

__all__ = ["Denoiser", "DiffusersSchedule", "Prediction", "PretrainedDenoiser"]
