"""Denoisers: one adapter for foreign networks, loading, exporting."""

from constrained_diffusion.denoisers.adapter import Denoiser, Prediction
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.denoisers.text_to_image import TextToImage

__all__ = ["Denoiser", "DiffusersSchedule", "Prediction", "PretrainedDenoiser", "TextToImage"]
