"""What noise optimisation is compared with, at an equal number of denoiser calls: best-of-N and loss guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.noise_optimization.memory import Predict
from constrained_diffusion.noise_optimization.problem import check_per_row
from constrained_diffusion.runtime.randomness import keyed_normal

Context = list[Any]


@torch.no_grad()
def best_of_n(
    sample: Callable[[Tensor, Context], Tensor],
    reward: Callable[[Tensor, Context], Tensor],
    draws: Iterable[Tensor],
    context: Context,
) -> tuple[Tensor, Tensor]:
    """Return the best sample of each row, `(B, *shape)`, and its reward `(B,)`.

    Args:
        sample: z and contexts -> samples, as `NoiseOptimizer` takes it.
        reward: samples and contexts -> `(B,)`.
        draws: N noise batches `(B, *z_shape)`, one after the other.
        context: one entry per row.

    Raises:
        ValueError: there are no draws.
    """
    best: tuple[Tensor, Tensor] | None = None
    for noise in draws:
        clean = sample(noise, context)
        value = reward(clean, context)
        if best is None:
            best = clean, value
            continue
        better = (value > best[1]).reshape(-1, *(1,) * (clean.ndim - 1))
        best = torch.where(better, clean, best[0]), torch.maximum(value, best[1])
    if best is None:
        raise ValueError("best_of_n expects at least one draw of noise, got none.")
    return best


def loss_guided(
    predict: Predict,
    noise_schedule: NoiseSchedule,
    reward: Callable[[Tensor], Tensor],
    scale: float,
    samples: int = 1,
    seed: int = 0,
    keys: Sequence[int] | None = None,
) -> Predict:
    """Return `predict` guided by the reward: loss-guided diffusion (LGD-MC, Song et al. 2023, ICML, eq. 8 and 9).

    Each call spends a forward and a backward pass of the denoiser. The score moves by `scale` times the gradient, with
    respect to x_t, of log mean_i exp r(x_i), x_i ~ N(x-hat, s^2 / (1 + s^2)), s^2 = (1 - abar) / abar.

    Args:
        predict: the denoiser, its conditioning bound.
        noise_schedule: alpha-bar.
        reward: samples in network units -> `(B,)`.
        scale: strength of the guidance.
        samples: n, the Monte-Carlo samples; with 1 the mean itself is taken.
        seed: keys them.
        keys: one integer per row, such as its own seed, that keys them too; by default 0, 1, .., its place in the
            batch, with which its numbers then change.

    Raises:
        ValueError: at the call, there are not as many keys as rows.
    """

    def guided(noisy: Tensor, timesteps: Tensor) -> Prediction:
        with torch.enable_grad():
            given = noisy.detach().requires_grad_(True)
            prediction = predict(given, timesteps)
            if samples == 1:
                value = reward(prediction.clean)
            else:
                signal, sigma = noise_schedule.coefficients(timesteps, noisy)
                spread = (sigma / signal) / (1 + (sigma / signal).square()).sqrt()
                check_per_row("keys", keys, len(noisy))
                rows = range(len(noisy)) if keys is None else keys
                drawn = [(seed, int(timesteps[0]), i, row) for i in range(samples) for row in rows]
                xi = keyed_normal(drawn, noisy.shape[1:]).to(noisy).view(samples, *noisy.shape)
                around = (prediction.clean + spread * xi).flatten(0, 1)
                value = reward(around).view(samples, -1).logsumexp(0) - math.log(samples)
            (gradient,) = torch.autograd.grad(value.sum(), given)
        signal, sigma = noise_schedule.coefficients(timesteps, noisy)
        noise = prediction.noise.detach() - scale * sigma * gradient
        shift = scale * sigma.square() / signal * gradient
        # The output says the same, for samplers that read the clean sample from it, without the clamp.
        unclamped = noise_schedule.to_clean(prediction.output.detach(), noisy, timesteps) + shift
        output = noise_schedule.from_clean(unclamped, noisy, timesteps)
        return Prediction(output, noise, prediction.clean.detach() + shift)

    return guided
