"""Samples that a card's figures are measured on."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.runtime.tracking import tracked


@torch.no_grad()
def draw(denoiser: PretrainedDenoiser, sampler: Sampler, count: int, batch_size: int = 250) -> Tensor:
    """Return the samples of seeds 0 .. count - 1, `(count, *shape)`, in the data's units."""
    found, schedule = [], denoiser.noise_schedule
    for seeds in tracked(torch.arange(count).split(batch_size), f"{count} samples, {sampler.steps} steps"):
        z = seeded_noise(seeds.tolist(), denoiser.sample_shape, sampler, schedule)
        found.append(denoiser.codec.decode(sampler(denoiser.predictor(), schedule, z)))
    return torch.cat(found)
