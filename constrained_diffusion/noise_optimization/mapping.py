"""M_theta: from a noise sequence to a sample in the data's units, differentiable in bounded memory (D eq. 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.noise_optimization.memory import (
    MemoryBudget,
    Predict,
    check_budget,
    checkpoint_calls,
    kept_calls,
    saved_bytes,
)


class NoiseToSample:
    """The sampler as a map from z `(B, 1 + K, *shape)` and the rows' contexts to samples `(B, *sample_shape)`.

    Args:
        predictor: contexts -> the denoiser's prediction for these rows, `(x_t, timesteps) -> Prediction`; its weights
            must be frozen.
        noise_schedule: the model's family and levels.
        sampler: steps, eta and the rest; eta = 0 leaves the initial noise alone in z.
        finish: from the sampler's result to the data's units, such as a decoder.
        memory_budget: bytes of activations of denoiser calls that may be kept for the backward pass, "unlimited", or
            "minimal" (none but the call in work).

    Raises:
        ValueError: the budget is none, or, at the first differentiable call, too small for a single call.
    """

    def __init__(
        self,
        predictor: Callable[[list[Any]], Predict],
        noise_schedule: NoiseSchedule,
        sampler: Sampler,
        finish: Callable[[Tensor], Tensor] = lambda sample: sample,
        memory_budget: MemoryBudget = "minimal",
    ) -> None:
        self.predictor, self.noise_schedule, self.sampler = predictor, noise_schedule, sampler
        self.finish, self.memory_budget = finish, check_budget(memory_budget)
        self._bytes: dict[tuple[int, ...], int] = {}

    @property
    def slices(self) -> int:
        """1 + K, how many noises of a sample's size z holds."""
        return 1 + self.sampler.injecting_steps(self.noise_schedule)

    def __call__(self, noise: Tensor, context: list[Any] | None = None) -> Tensor:
        predict = self.predictor([None] * len(noise) if context is None else context)
        if torch.is_grad_enabled() and noise.requires_grad:
            keep = kept_calls(self.memory_budget, self.sampler.steps, lambda: self._measured(predict, noise[:, 0]))
            predict = checkpoint_calls(predict, self.sampler.steps, keep)
        return self.finish(self.sampler(predict, self.noise_schedule, noise))

    def _measured(self, predict: Predict, noisy: Tensor) -> int:
        shape = tuple(noisy.shape)
        if shape not in self._bytes:
            timesteps = torch.zeros(len(noisy), dtype=torch.long, device=noisy.device)
            self._bytes[shape] = saved_bytes(predict, noisy, timesteps)
        return self._bytes[shape]
