"""What steers a sampler without touching weights; one file per way."""

from constrained_diffusion.guides.base import Guide
from constrained_diffusion.guides.chain import Chain
from constrained_diffusion.guides.loss_guidance import LossGuidance

__all__ = [
    "Chain",
    "Guide",
    "LossGuidance",
]
