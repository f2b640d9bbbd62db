"""How a batch becomes noisy: noise and noise levels of training, and those of held-out rows, which are fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constrained_diffusion.batch import Batch, NoisyBatch
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.runtime.precision import to_float32
from constrained_diffusion.runtime.randomness import keyed_normal, mix, stratified_timesteps, to_device, token_timesteps

TRAINING, HELD_OUT, NETWORK = 1, 2, 3  # streams of random numbers


@dataclass(frozen=True)
class PerToken:
    """Noise levels of training that differ within a sample `(B, L, ..)`, as in Diffusion Forcing.

    Args:
        share: of the rows in which each token has a noise level of its own, in [0, 1].

    Raises:
        ValueError: it is not a share.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"noise_levels.share is a share of the rows, in [0, 1]; got {self.share}.")


def draw_training(
    batch: Batch,
    denoiser: Denoiser,
    key: tuple[int, int],
    rank: tuple[int, int],
    max_timestep: int,
    noise_levels: PerToken | None = None,
    guide: Guide | None = None,
) -> NoisyBatch:
    """Return the rows of one training step with keyed noise and stratified timesteps.

    Args:
        batch: this rank's rows.
        denoiser: gives the schedule and the units.
        key: (seed, number of the step), which all that is drawn depends on, besides the row's number.
        rank: (rank, number of ranks); row j of a rank is row rank * B + j of the step.
        max_timestep: T_phi, the same share of the rows of every step being below it.
        noise_levels: levels that differ from token to token; None: one for each row.
        guide: what it holds clean in sampling is clean here too.
    """
    schedule, clean = denoiser.noise_schedule, denoiser.normalizer.normalize(to_float32(batch.clean))
    (seed, number), (own, ranks) = key, rank
    rows = range(own * len(clean), (own + 1) * len(clean))
    noise = keyed_normal([(seed, TRAINING, number, row) for row in rows], clean.shape[1:])
    drawn = seed, number, rows, len(clean) * ranks, schedule.num_timesteps
    levels = stratified_timesteps(*drawn, max_timestep)
    if noise_levels is not None and noise_levels.share:
        levels = token_timesteps(levels, clean.shape[1], noise_levels.share, *drawn)
    step = _noisy(batch, clean, to_device(noise, clean.device).to(clean.dtype), levels, denoiser)
    if guide is None:
        return step
    noisy, timesteps = guide.hold(step.noisy, step.timesteps, denoiser)
    return step._replace(noisy=noisy, timesteps=timesteps)


def draw_held_out(batch: Batch, denoiser: Denoiser, seed: int) -> NoisyBatch:
    """Return held-out rows with the noise and the level that each row always has, by its place in the data set."""
    clean = denoiser.normalizer.normalize(to_float32(batch.clean))
    places = list(range(len(clean))) if batch.rows is None else batch.rows.tolist()
    noise = keyed_normal([(seed, HELD_OUT, place) for place in places], clean.shape[1:]).to(clean)
    # Multiples of the golden ratio spread evenly over the schedule, however many rows there are.
    fractions = torch.tensor([(place * 0.6180339887498949) % 1 for place in places])
    return _noisy(batch, clean, noise, (fractions * denoiser.noise_schedule.num_timesteps).long(), denoiser)


def _noisy(batch: Batch, clean: Tensor, noise: Tensor, levels: Tensor, denoiser: Denoiser) -> NoisyBatch:
    timesteps = to_device(levels, clean.device)
    noisy = denoiser.noise_schedule.add_noise(clean, noise, timesteps)
    highest = levels.flatten(1).amax(1) if levels.ndim > 1 else levels
    return NoisyBatch(clean, batch.clean, noise, noisy, timesteps, highest, batch.condition, batch.rows)


def seed_networks(key: tuple[int, int], rank: int) -> None:
    """Key what networks draw by themselves, such as dropout, by (seed, step) and rank: a resumed fit draws the same."""
    seed, number = key
    torch.manual_seed(mix(seed, NETWORK, number, rank))
