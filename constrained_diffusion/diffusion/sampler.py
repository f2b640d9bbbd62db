"""DDIM(eta) as a pure, differentiable map from noise to sample, M_theta(z) (Song et al. 2020, arXiv 2010.02502).

z, the `noise_sequence`, has shape `(B, 1 + K, *shape)`: the initial noise x_T, then the noise of each of the K steps
that inject one. Nothing is drawn inside, and there is no `no_grad`: both are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.prediction import Predict
from constrained_diffusion.runtime.randomness import keyed_normal

Spacing = Literal["leading", "trailing", "linspace"]
CleanHook = Callable[[Tensor, Tensor], Tensor]

SAMPLING = 0x5A  # the stream of initial noises, apart from the training streams


@dataclass(frozen=True)
class Sampler:
    """Settings of DDIM.

    Args:
        steps: number of denoiser calls.
        eta: 0 is the deterministic sampler (z is the initial noise alone), 1 injects noise as DDPM does.
        spacing: how the steps lie on the training grid; the names are diffusers'.
        steps_offset: added to every timestep under "leading" spacing (Stable Diffusion uses 1).
        set_alpha_to_one: whether alpha-bar after the last step is 1 (a fully clean sample) or alpha-bar_0.
        clip_sample: use the predicted clean sample as clamped to the data range.

    Raises:
        ValueError: steps < 1, eta outside [0, 1], or an unknown spacing.
    """

    steps: int = 20
    eta: float = 0.0
    spacing: Spacing = "trailing"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    clip_sample: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.eta <= 1:
            raise ValueError(f"Sampler expects steps >= 1 and eta in [0, 1], got steps={self.steps}, eta={self.eta}.")
        if self.spacing not in get_args(Spacing):
            raise ValueError(f"spacing must be one of {', '.join(get_args(Spacing))}, got '{self.spacing}'.")

    def pairs(self, num_timesteps: int) -> list[tuple[int, int]]:
        """Return the (t, t_prev) pairs from noisy to clean; t_prev = -1 stands for the end of the last step.

        >>> Sampler(steps=2, spacing="leading").pairs(1000)
        [(500, 0), (0, -1)]

        The grids are those of diffusers' DDIMScheduler, in its own arithmetic, so that ties round alike; the pairs are
        not its `t - T // n`, which misses the grid unless n divides T.

        Raises:
            ValueError: more steps than the schedule has, or an offset that leads out of it.
        """
        if self.steps > num_timesteps:
            raise ValueError(f"expected at most {num_timesteps} steps, the schedule's length, got {self.steps}.")
        if self.spacing == "leading":
            stride = num_timesteps // self.steps
            times = [i * stride + self.steps_offset for i in reversed(range(self.steps))]
        elif self.spacing == "trailing":  # cut, because rounding errors may give arange one element too many
            grid = np.arange(num_timesteps, 0, -num_timesteps / self.steps)[: self.steps]
            times = [int(t) - 1 for t in grid.round()]
        else:
            times = [int(t) for t in np.linspace(0, num_timesteps - 1, self.steps).round()[::-1]]
        if not 0 <= times[-1] <= times[0] < num_timesteps:
            raise ValueError(
                f"steps_offset={self.steps_offset} puts the timesteps in [{times[-1]}, {times[0]}], outside the "
                f"schedule's [0, {num_timesteps - 1}]; lower it, or take fewer steps."
            )
        return list(zip(times, [*times[1:], -1], strict=True))

    def injects(self, t: int, previous: int) -> bool:
        """Return whether the step from `t` to `previous` injects noise: not onto alpha-bar = 1, nor from t = 0 to 0."""
        return self.eta > 0 and (previous >= 0 or (t > 0 and not self.set_alpha_to_one))

    def injecting_steps(self, num_timesteps: int) -> int:
        """Return K, the number of steps that inject noise; a step that ends in alpha-bar = 1 has none to inject."""
        return sum(self.injects(t, previous) for t, previous in self.pairs(num_timesteps))

    def __call__(self, predict: Predict, noise_schedule: NoiseSchedule, noise_sequence: Tensor) -> Tensor:
        """Map `noise_sequence` `(B, 1 + K, *shape)` to samples `(B, *shape)` in network units; see `ddim`."""
        return ddim(predict, noise_schedule, noise_sequence, self)


def step_coefficients(a_t: float, a_previous: float, eta: float) -> tuple[float, float, float]:
    """Return the factors of the predicted clean sample, the predicted noise and the injected noise (eq. 12 and 16).

    >>> step_coefficients(0.5, 1.0, eta=1.0)  # a step onto alpha-bar = 1 leaves the clean sample alone
    (1.0, 0.0, 0.0)
    """
    variance = (1 - a_previous) / (1 - a_t) * (1 - a_t / a_previous) if a_t < a_previous else 0.0
    sigma = eta * math.sqrt(variance)
    return math.sqrt(a_previous), math.sqrt(max(1 - a_previous - sigma**2, 0.0)), sigma


def ddim(
    predict: Predict,
    noise_schedule: NoiseSchedule,
    noise_sequence: Tensor,
    sampler: Sampler,
    on_clean: CleanHook | None = None,
    progress: Callable[[Sequence[tuple[int, int]]], Sequence[tuple[int, int]]] | None = None,
) -> Tensor:
    """Map `noise_sequence` `(B, 1 + K, *shape)` to samples `(B, *shape)` in network units.

    Args:
        predict: `(x_t, timesteps) -> Prediction`, a denoiser with its conditioning bound.
        noise_schedule: gives alpha-bar.
        noise_sequence: z; K must be `sampler.injecting_steps(T)`.
        sampler: the settings.
        on_clean: `(predicted_clean, timesteps) -> predicted_clean`, the place of guidance and projection.
        progress: wraps the list of steps, for a progress bar.

    Raises:
        ValueError: the noise sequence has the wrong number of slices.
    """
    pairs = sampler.pairs(noise_schedule.num_timesteps)
    check_slices(noise_sequence, sampler, noise_schedule.num_timesteps)
    abar = noise_schedule.levels()
    final = 1.0 if sampler.set_alpha_to_one else abar[0]
    noisy, injected = noise_sequence[:, 0], 1
    for t, previous in progress(pairs) if progress else pairs:
        timesteps = torch.full((len(noisy),), t, device=noisy.device)
        output, noise, clean = predict(noisy, timesteps)
        if not sampler.clip_sample:
            clean = noise_schedule.to_clean(output, noisy, timesteps)
        if on_clean is not None:
            clean = on_clean(clean, timesteps)
        signal, direction, sigma = step_coefficients(abar[t], abar[previous] if previous >= 0 else final, sampler.eta)
        noisy = signal * clean + direction * noise
        if sampler.injects(t, previous):
            noisy = noisy + sigma * noise_sequence[:, injected]
            injected += 1
    return noisy


def check_slices(noise_sequence: Tensor, sampler: Sampler, num_timesteps: int) -> None:
    """Raise ValueError unless `noise_sequence` `(B, 1 + K, *shape)` has the slices that `sampler` reads."""
    expected = 1 + sampler.injecting_steps(num_timesteps)
    if noise_sequence.shape[1] != expected:
        raise ValueError(
            f"noise_sequence needs {expected} slices (the initial noise and one per injecting step) for "
            f"steps={sampler.steps}, eta={sampler.eta}; got {noise_sequence.shape[1]}."
        )


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], sampler: Sampler, num_timesteps: int) -> Tensor:
    """Return z of shape `(len(seeds), 1 + K, *shape)`; sample s depends on its own seed alone."""
    slices = 1 + sampler.injecting_steps(num_timesteps)
    return keyed_normal([(SAMPLING, int(seed)) for seed in seeds], (slices, *shape))
