"""The sampler where tokens are at different noise levels, as in Diffusion Forcing (Chen et al. 2024, arXiv 2407.01392).

A scheduling matrix `(M + 1, L)` says after how many of its K steps each token is before the first and after each of the
M calls of the denoiser: from all 0 to all K, going up by 0 or 1 a call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.prediction import Predict
from constrained_diffusion.diffusion.sampler import Sampler, check_slices, scaled, time_dtype


@dataclass(frozen=True)
class PyramidSampler(Sampler):
    """The sampler by a pyramid: each token is denoised `lag` steps later than the one before it, near future first.

    Args:
        lag: 0 is the full sequence at once; `steps` is one token after the other.
        steps, eta, spacing, steps_offset, set_alpha_to_one, clip_sample, renoise, start, clip_range: see `Sampler`.

    Raises:
        ValueError: a negative lag, or what `Sampler` raises.
    """

    lag: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lag < 0:
            raise ValueError(f"PyramidSampler expects a lag of 0 or more steps, got {self.lag}.")

    def __call__(self, predict: Predict, noise_schedule: NoiseSchedule, noise_sequence: Tensor) -> Tensor:
        matrix = pyramid(self.steps, noise_sequence.shape[2], self.lag)
        return token_sample(predict, noise_schedule, noise_sequence, self, matrix)


def pyramid(steps: int, tokens: int, lag: int = 1) -> Tensor:
    """Return the scheduling matrix in which each token is `lag` steps behind the one before it.

    >>> pyramid(2, 2).tolist()
    [[0, 0], [1, 0], [2, 1], [2, 2]]
    """
    calls = torch.arange(steps + lag * (tokens - 1) + 1)
    return (calls[:, None] - lag * torch.arange(tokens)).clamp(0, steps)


def token_sample(
    predict: Predict, noise_schedule: NoiseSchedule, noise_sequence: Tensor, sampler: Sampler, matrix: Tensor
) -> Tensor:
    """Map `noise_sequence` `(B, 1 + K, L, ...)` to samples `(B, L, ...)` in network units.

    The denoiser is called at the timesteps `(B, L)`; a finished token stands at the lowest noise level of the schedule.

    Args:
        predict: `(x_t, timesteps) -> Prediction`.
        noise_schedule: the model's family and levels.
        noise_sequence: z; see `sampler.sample`.
        sampler: the settings.
        matrix: the scheduling matrix `(M + 1, L)`.

    Raises:
        ValueError: the noise sequence has the wrong number of slices, or the matrix is not a scheduling matrix.
    """
    check_slices(noise_sequence, sampler, noise_schedule)
    moves = matrix.diff(dim=0)
    ends = (matrix[0] == 0).all() and (matrix[-1] == sampler.steps).all()
    if matrix.shape[1:] != noise_sequence.shape[2:3] or not ends or not ((moves == 0) | (moves == 1)).all():
        raise ValueError(
            f"expected a scheduling matrix (M + 1, {noise_sequence.shape[2]}) from all 0 to all {sampler.steps} in "
            f"moves of 0 or 1, got one of shape {tuple(matrix.shape)}; `pyramid` makes one."
        )
    settings, pairs = sampler.of(noise_schedule), sampler.pairs(noise_schedule)
    steps = [sampler.coefficients(noise_schedule, pair) for pair in pairs]
    table = torch.tensor([*steps, (0.0, 0.0, 0.0)], device=noise_sequence.device, dtype=noise_sequence.dtype)
    each = [*(level.timestep for level, _ in pairs), 0]
    times = torch.tensor(each, device=noise_sequence.device, dtype=time_dtype(each, noise_sequence.device))
    # Which slice of z a step injects; a step that injects none has a factor of 0, whichever slice it reads.
    injecting = [std > 0 for *_, std in steps]
    slices = torch.tensor([*injecting, False]).cumsum(0).to(noise_sequence.device)
    wide = (1, -1, *(1,) * (noise_sequence.ndim - 3))
    noisy = scaled(noise_sequence[:, 0], sampler.initial(noise_schedule))
    for done, move in zip(matrix[:-1].to(noisy.device), moves.bool().to(noisy.device), strict=True):
        timesteps = times[done].expand(len(noisy), -1)
        prediction = predict(noisy, timesteps)
        clean = settings.clipped(prediction, noise_schedule, noisy, timesteps)
        signal, direction, sigma = (column.view(wide) for column in table[done].unbind(1))
        stepped = signal * clean + direction * prediction.noise
        if any(injecting):
            tokens = torch.arange(len(done), device=noisy.device)
            stepped = stepped + sigma * noise_sequence[:, slices[done], tokens]
        noisy = torch.where(move.view(wide), stepped, noisy)
    return noisy
