"""One sampler of every family, as a pure, differentiable map from noise to sample, M_theta(z).

From level t to level s, with std = eta (sigma_s / sigma_t) sqrt(sigma_t^2 - (s_t / s_s)^2 sigma_s^2),

    x_s = s_s x-hat + sqrt(sigma_s^2 - std^2) eps-hat + std z

which is DDIM(eta) for DDPM's family (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16), Euler's method on the
probability flow for flow matching, and Euler on sigmas, with eta = 1 Euler ancestral, for EDM's. Consistency models put
fresh noise onto the clean sample instead: std = sigma_s (Song et al. 2023, arXiv 2303.01469, Algorithm 1).

z, the `noise_sequence`, has shape `(B, 1 + K, *shape)`: the initial noise, then the noise of each of the K steps that
inject one. Nothing is drawn inside, and there is no `no_grad`: both are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from constrained_diffusion.diffusion.noise_schedule import Level, NoiseSchedule
from constrained_diffusion.diffusion.prediction import Predict, Prediction
from constrained_diffusion.runtime.randomness import keyed_normal

Start = Literal["marginal", "noise"]
CleanHook = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[Level, Level]

SAMPLING = 0x5A  # the stream of initial noises, apart from the training streams


@dataclass(frozen=True)
class Sampler:
    """Settings of the sampler; None stands for what the model's own pipeline does, or else for its family's.

    Args:
        steps: number of denoiser calls.
        eta: 0 is the deterministic sampler (z is the initial noise alone), 1 injects noise as DDPM does.
        spacing: how the steps are placed, see `NoiseSchedule.grid` of the family: "leading", "trailing", "linspace",
            "interpolated", "solver_leading", "solver_linspace", "lcm"; "karras", "exponential", alone or between the
            ends of another, as in "karras_leading"; "list"; "linear", "training", "dynamic", "dpm", "unipc".
        steps_offset: added to every timestep under "leading" spacing (Stable Diffusion uses 1).
        set_alpha_to_one: whether the last step ends in a fully clean sample, or at the lowest noise of the schedule.
        clip_sample: use the predicted clean sample as clamped to the data range.
        clip_range: r; with clip_sample, the predicted clean sample is also clamped to [-r, r] in the network's space.
        renoise: put fresh noise onto the clean sample, as consistency models and LCM do; eta then has no say.
        start: what the initial noise is multiplied by: "marginal", the deviation of x_T for data of unit variance, or
            "noise", sigma_T, as diffusers' Euler schedulers do under other than leading spacing.

    Raises:
        ValueError: steps < 1, or eta outside [0, 1].
    """

    steps: int = 20
    eta: float = 0.0
    spacing: str | None = None
    steps_offset: int | None = None
    set_alpha_to_one: bool | None = None
    clip_sample: bool | None = None
    renoise: bool | None = None
    start: Start | None = None
    clip_range: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.eta <= 1:
            raise ValueError(f"Sampler expects steps >= 1 and eta in [0, 1], got steps={self.steps}, eta={self.eta}.")

    def of(self, schedule: NoiseSchedule) -> Sampler:
        """Return the sampler with every None filled in by the model's own settings, or by those of DDIM."""
        own: dict[str, Any] = {"spacing": "trailing", "steps_offset": 0, "set_alpha_to_one": True, "clip_sample": True}
        own |= {"renoise": False, "start": "marginal", **schedule.sampler_settings}
        return replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

    def pairs(self, schedule: NoiseSchedule) -> list[Pair]:
        """Return the levels that each step leads from and to, from noisy to clean.

        Raises:
            ValueError: as `NoiseSchedule.grid`.
        """
        levels = schedule.grid(self.of(schedule))
        return list(pairwise(levels))

    def coefficients(self, schedule: NoiseSchedule, pair: Pair) -> tuple[float, float, float]:
        """Return the factors of the predicted clean sample, the predicted noise and the injected noise."""
        if self.of(schedule).renoise:
            sigma, held = pair[1].sigma, schedule.least_sigma
            return pair[1].signal, 0.0, math.sqrt(sigma**2 - held**2) if sigma > held * (1 + 1e-6) else 0.0
        return step_coefficients(*pair, self.eta)

    def injects(self, schedule: NoiseSchedule, pair: Pair) -> bool:
        """Return whether the step injects noise: not onto a clean sample, nor where the noise stays as it is."""
        return self.coefficients(schedule, pair)[2] > 0

    def injecting_steps(self, schedule: NoiseSchedule) -> int:
        """Return K, the number of steps that inject noise."""
        return sum(self.injects(schedule, pair) for pair in self.pairs(schedule))

    def initial(self, schedule: NoiseSchedule) -> float:
        """Return what the initial noise is multiplied by."""
        first = self.pairs(schedule)[0][0]
        return first.sigma if self.of(schedule).start == "noise" else math.hypot(first.signal, first.sigma)

    def clipped(self, found: Prediction, schedule: NoiseSchedule, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return the predicted clean sample, clipped as the settings say; the gradient passes straight through."""
        if not self.clip_sample:
            return schedule.to_clean(found.output, noisy, timesteps)
        if self.clip_range is None:
            return found.clean
        clamped = found.clean.clamp(-self.clip_range, self.clip_range)
        return clamped.detach() + (found.clean - found.clean.detach())

    def __call__(self, predict: Predict, noise_schedule: NoiseSchedule, noise_sequence: Tensor) -> Tensor:
        """Map `noise_sequence` `(B, 1 + K, *shape)` to samples `(B, *shape)` in network units; see `sample`."""
        return sample(predict, noise_schedule, noise_sequence, self)


def step_coefficients(level: Level, following: Level, eta: float) -> tuple[float, float, float]:
    """Return the factors of the predicted clean sample, the predicted noise and the injected noise.

    >>> step_coefficients(Level(9, 0.6, 0.8), Level(0, 1.0, 0.0), eta=1.0)  # the last step leaves the clean sample
    (1.0, 0.0, 0.0)
    """
    if not eta or following.sigma == 0:
        return following.signal, following.sigma, 0.0
    left = level.sigma**2 - (level.signal / following.signal * following.sigma) ** 2
    std = eta * following.sigma / level.sigma * math.sqrt(max(left, 0.0))
    return following.signal, math.sqrt(max(following.sigma**2 - std**2, 0.0)), std


def sample(
    predict: Predict,
    noise_schedule: NoiseSchedule,
    noise_sequence: Tensor,
    sampler: Sampler,
    on_clean: CleanHook | None = None,
    progress: Callable[[Sequence[Pair]], Sequence[Pair]] | None = None,
) -> Tensor:
    """Map `noise_sequence` `(B, 1 + K, *shape)` to samples `(B, *shape)` in network units.

    Args:
        predict: `(x_t, timesteps) -> Prediction`, a denoiser with its conditioning bound.
        noise_schedule: the model's family and levels.
        noise_sequence: z; K must be `sampler.injecting_steps(noise_schedule)`.
        sampler: the settings.
        on_clean: `(predicted_clean, timesteps) -> predicted_clean`, the place of guidance and projection.
        progress: wraps the list of steps, for a progress bar.

    Raises:
        ValueError: the noise sequence has the wrong number of slices.
    """
    check_slices(noise_sequence, sampler, noise_schedule)
    settings, pairs = sampler.of(noise_schedule), sampler.pairs(noise_schedule)
    noisy, injected = scaled(noise_sequence[:, 0], sampler.initial(noise_schedule)), 1
    for pair in progress(pairs) if progress else pairs:
        timesteps = at_level(pair[0], noisy)
        prediction = predict(noisy, timesteps)
        clean = settings.clipped(prediction, noise_schedule, noisy, timesteps)
        if on_clean is not None:
            clean = on_clean(clean, timesteps)
        signal, direction, std = sampler.coefficients(noise_schedule, pair)
        noisy = signal * clean + direction * prediction.noise
        if std > 0:
            noisy = noisy + std * noise_sequence[:, injected]
            injected += 1
    return noisy


def at_level(level: Level, noisy: Tensor) -> Tensor:
    """Return the timesteps `(B,)` of rows that are at `level`."""
    dtype = time_dtype([level.timestep], noisy.device)
    return torch.full((len(noisy),), level.timestep, device=noisy.device, dtype=dtype)


def time_dtype(timesteps: Sequence[float], device: torch.device) -> torch.dtype:
    """Return the type of `timesteps` on `device`: integers, or fractions in double precision."""
    if all(isinstance(timestep, int) for timestep in timesteps):
        return torch.int64
    return torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPUs lack


def scaled(noise: Tensor, factor: float) -> Tensor:
    """Return `factor * noise`; nothing is rounded where the factor is 1 but for rounding."""
    return noise if math.isclose(factor, 1.0, rel_tol=1e-12) else factor * noise


def check_slices(noise_sequence: Tensor, sampler: Sampler, schedule: NoiseSchedule) -> None:
    """Raise ValueError unless `noise_sequence` `(B, 1 + K, *shape)` has the slices that `sampler` reads."""
    expected = 1 + sampler.injecting_steps(schedule)
    if noise_sequence.shape[1] != expected:
        raise ValueError(
            f"noise_sequence needs {expected} slices (the initial noise and one per injecting step) for "
            f"steps={sampler.steps}, eta={sampler.eta}; got {noise_sequence.shape[1]}."
        )


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], sampler: Sampler, schedule: NoiseSchedule) -> Tensor:
    """Return z of shape `(len(seeds), 1 + K, *shape)`; sample s depends on its own seed alone."""
    slices = 1 + sampler.injecting_steps(schedule)
    return keyed_normal([(SAMPLING, int(seed)) for seed in seeds], (slices, *shape))
