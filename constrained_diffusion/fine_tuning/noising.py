"""How a batch becomes noisy: noise and noise levels of training, and those of held-out rows, which are fixed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from constrained_diffusion.batch import Batch, NoisyBatch
from constrained_diffusion.condition import blend
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.runtime.precision import to_float32
from constrained_diffusion.runtime.randomness import (
    keyed_normal,
    keyed_uniform,
    mix,
    stratified_timesteps,
    to_device,
    token_timesteps,
)

TRAINING, HELD_OUT, NETWORK, DROPOUT = 1, 2, 3, 5  # streams of random numbers


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


@dataclass(frozen=True)
class LogitNormal:
    """Noise levels of training whose logit is normal: more in the middle (Esser et al. 2024, arXiv 2403.03206, eq. 19).

    Args:
        mean: above 0, more noise.
        std: its spread.

    Raises:
        ValueError: the spread is not above 0.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"LogitNormal expects std > 0, got {self.std}.")

    def place(self, share: Tensor) -> Tensor:
        """Return the place on the schedule, in (0, 1), below which the `share` of all levels is: the quantile."""
        place = torch.sigmoid(self.mean + self.std * torch.special.ndtri(share.double().clamp(1e-12, 1 - 1e-12)))
        return place.clamp(max=math.nextafter(1.0, 0.0))  # a wide spread rounds up to 1, which is not on the schedule

    def share(self, place: Tensor) -> Tensor:
        """Return the share of all levels below `place`: the distribution function."""
        below: Tensor = torch.special.ndtr((torch.logit(place.double()) - self.mean) / self.std)
        return below


def draw_training(
    batch: Batch,
    denoiser: Denoiser,
    key: tuple[int, int],
    rank: tuple[int, int],
    max_timestep: int,
    noise_levels: PerToken | None = None,
    guide: Guide | None = None,
    density: LogitNormal | None = None,
    condition_dropout: float = 0.0,
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
        density: of the noise levels; None: even over the schedule.
        condition_dropout: the share of rows with an empty condition, chosen by the row's number; the frozen model,
            which they are compared with, keeps theirs.
    """
    schedule, clean = denoiser.noise_schedule, encoded(batch, denoiser)
    (seed, number), (own, ranks) = key, rank
    rows = range(own * len(clean), (own + 1) * len(clean))
    noise = keyed_normal([(seed, TRAINING, number, row) for row in rows], clean.shape[1:])
    drawn = seed, number, rows, len(clean) * ranks, schedule.num_timesteps
    low, total = float(max_timestep), schedule.num_timesteps
    if density is not None:  # strata of equal share, T_phi among them, and then to their places
        low = float(density.share(torch.tensor(low / total, dtype=torch.float64))) * total
    values = stratified_timesteps(*drawn, low)
    levels = schedule.as_timesteps(values if density is None else density.place(values / total) * total)
    if noise_levels is not None and noise_levels.share:
        levels = token_timesteps(levels, clean.shape[1], noise_levels.share, *drawn)
    if condition_dropout and batch.condition is not None:
        told = keyed_uniform([(seed, DROPOUT, number, row) for row in rows], 0, 1, clean)[:, 0] >= condition_dropout
        null = denoiser.null(len(clean), clean.device)
        teacher = batch.condition if batch.teacher is None else batch.teacher
        batch = batch._replace(condition=blend(told, batch.condition, null), teacher=teacher)
    step = _noisy(batch, clean, to_device(noise, clean.device).to(clean.dtype), levels, denoiser)
    if guide is None:
        return step
    noisy, timesteps = guide.hold(step.noisy, step.timesteps, denoiser)
    return step._replace(noisy=noisy, timesteps=timesteps)


def draw_held_out(batch: Batch, denoiser: Denoiser, seed: int) -> NoisyBatch:
    """Return held-out rows with the noise and the level that each row always has, by its place in the data set."""
    clean = encoded(batch, denoiser)
    places = list(range(len(clean))) if batch.rows is None else batch.rows.tolist()
    noise = keyed_normal([(seed, HELD_OUT, place) for place in places], clean.shape[1:]).to(clean)
    # Multiples of the golden ratio spread evenly over the schedule, however many rows there are.
    fractions = torch.tensor([(place * 0.6180339887498949) % 1 for place in places])
    schedule = denoiser.noise_schedule
    return _noisy(batch, clean, noise, schedule.as_timesteps(fractions * schedule.num_timesteps), denoiser)


def encoded(batch: Batch, denoiser: Denoiser) -> Tensor:
    """Return the clean samples in the network's space."""
    return to_float32(batch.latent) if batch.latent is not None else denoiser.codec.encode(to_float32(batch.clean))


def _noisy(batch: Batch, clean: Tensor, noise: Tensor, levels: Tensor, denoiser: Denoiser) -> NoisyBatch:
    timesteps = to_device(levels, clean.device)
    noisy = denoiser.noise_schedule.add_noise(clean, noise, timesteps)
    highest = levels.flatten(1).amax(1) if levels.ndim > 1 else levels
    return NoisyBatch(clean, batch.clean, noise, noisy, timesteps, highest, batch.condition, batch.rows, batch.teacher)


def seed_networks(key: tuple[int, int], rank: int) -> None:
    """Key what networks draw by themselves, such as dropout, by (seed, step) and rank: a resumed fit draws the same."""
    seed, number = key
    torch.manual_seed(mix(seed, NETWORK, number, rank))
