"""Make a pretrained diffusion model obey constraints: by fine-tuning it, or by optimising its noise."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from constrained_diffusion.objectives import Constraint, Reward, available, get, register
from constrained_diffusion.runtime import stored_networks

if TYPE_CHECKING:
    from constrained_diffusion.denoisers.adapter import Denoiser
    from constrained_diffusion.denoisers.loading import PretrainedDenoiser
    from constrained_diffusion.diffusion.rejection import Rejection
    from constrained_diffusion.diffusion.sampler import Sampler
    from constrained_diffusion.domains.images.class_probability import ClassProbability
    from constrained_diffusion.fine_tuning.loss import MinSNR, PenaltyLoss
    from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
    from constrained_diffusion.fine_tuning.noising import LogitNormal, PerToken
    from constrained_diffusion.noise_optimization.mapping import NoiseToSample
    from constrained_diffusion.noise_optimization.module import DirectNoiseOptimization
    from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer

_LAZY = {
    "ClassProbability": "domains.images.class_probability",
    "ConstrainedDiffusion": "fine_tuning.module",
    "Denoiser": "denoisers.adapter",
    "DirectNoiseOptimization": "noise_optimization.module",
    "LogitNormal": "fine_tuning.noising",
    "MinSNR": "fine_tuning.loss",
    "NoiseOptimizer": "noise_optimization.optimizer",
    "NoiseToSample": "noise_optimization.mapping",
    "PenaltyLoss": "fine_tuning.loss",
    "PerToken": "fine_tuning.noising",
    "PretrainedDenoiser": "denoisers.loading",
    "Rejection": "diffusion.rejection",
    "Sampler": "diffusion.sampler",
}

__all__ = [
    "ClassProbability",
    "ConstrainedDiffusion",
    "Constraint",
    "Denoiser",
    "DirectNoiseOptimization",
    "LogitNormal",
    "MinSNR",
    "NoiseOptimizer",
    "NoiseToSample",
    "PenaltyLoss",
    "PerToken",
    "PretrainedDenoiser",
    "Rejection",
    "Reward",
    "Sampler",
    "available",
    "get",
    "register",
]


def _load_domains() -> None:
    import_module("constrained_diffusion.domains").load()


# Weights may name a network of a domain that nobody has imported: `PretrainedDenoiser("maze2d_planner")`.
stored_networks.IMPORTERS.append(_load_domains)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'constrained_diffusion' has no attribute '{name}'")
    return getattr(import_module(f"constrained_diffusion.{_LAZY[name]}"), name)
