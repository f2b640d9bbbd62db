"""What steers a sampler without touching weights: held tokens, guidance, projection, barriers; one file per way."""

from constrained_diffusion.guides.barrier import BarrierStep
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.guides.chain import Chain
from constrained_diffusion.guides.guidance import LossGuidance
from constrained_diffusion.guides.held import HeldEnds
from constrained_diffusion.guides.projection import Projection

__all__ = ["BarrierStep", "Chain", "Guide", "HeldEnds", "LossGuidance", "Projection"]
