"""How a clean sample and noise meet, in every family of models, and what a network's output says of both.

| paper | code | shape |
|---|---|---|
| x_0 | `clean` | `(B, *shape)` |
| x_t = s x_0 + sigma eps | `noisy` | `(B, *shape)` |
| epsilon, epsilon_theta | `noise`, `predicted_noise` | `(B, *shape)` |
| s, sigma | `signal`, `sigma` | broadcast against a sample |
| t | `timesteps`, in [0, T), larger is noisier | `(B,)`, or `(B, L)` for one level per token of `(B, L, ...)` |

A timestep is a place on the list of levels that the model was trained with. It is an integer where the model knows no
levels between those, else a float in double precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from constrained_diffusion.diffusion.prediction_types import PredictionType

if TYPE_CHECKING:
    from constrained_diffusion.diffusion.sampler import Sampler


class Level(NamedTuple):
    """One noise level of a sampler's grid, in Python floats, which compute in double precision."""

    timestep: float  #: as the schedule counts; nobody asks the last level for it
    signal: float
    sigma: float


class NoiseSchedule(nn.Module, ABC):
    """A family of models: signal and noise at each level, what the network sees of a level, and the sampler's grid.

    Attributes:
        num_timesteps: T, how many levels the model was trained with.
        prediction: what its network returns.
        sampler_settings: the arguments of `Sampler` that the model's own pipeline has; others are the family's.
        config: of the diffusers scheduler that it was read from; None where it was not.
        least_sigma: the noise that a predicted clean sample still has; above 0 for consistency models alone.
    """

    num_timesteps: int
    prediction: PredictionType
    sampler_settings: dict[str, Any]
    prediction_type: str
    config: dict[str, Any] | None = None
    least_sigma: float = 0.0

    @abstractmethod
    def signal_and_sigma(self, timesteps: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return s and sigma at `timesteps`, both of its shape and computed in `dtype`, single precision or better."""

    @abstractmethod
    def grid(self, sampler: Sampler) -> list[Level]:
        """Return the levels of `sampler`, from noisy to clean: one for each step, and the end.

        Raises:
            ValueError: it asks for a spacing or for more steps than this family has.
        """

    @abstractmethod
    def as_timesteps(self, values: Tensor) -> Tensor:
        """Return the timesteps at `values`, any numbers in [0, T), as the network was trained with them."""

    def network_time(self, timesteps: Tensor) -> Tensor:
        """Return the time argument that the network gets at `timesteps`."""
        return timesteps

    def network_input(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network is shown of `noisy`."""
        return noisy

    def coefficients(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return s and sigma at `timesteps`, shaped to broadcast against `like`, in its precision."""
        # In bfloat16 sigma would be 0 at small t.
        signal, sigma = self.signal_and_sigma(timesteps, torch.promote_types(torch.float32, like.dtype))
        wide = signal.shape + (1,) * (like.ndim - signal.ndim)
        return signal.reshape(wide).to(like.dtype), sigma.reshape(wide).to(like.dtype)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t = s x_0 + sigma eps (P eq. 6 for the family of DDPM), shape of `clean`."""
        signal, sigma = self.coefficients(timesteps, clean)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network should output for this clean sample and noise, in its own prediction type."""
        return self.prediction.target(clean, noise, *self.coefficients(timesteps, clean))

    def to_clean(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return x-hat(x_t, t) from the network's output (P Alg. 1), not clamped."""
        return self.prediction.to_clean(output, noisy, *self.coefficients(timesteps, noisy))

    def from_clean(self, clean: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return the output that means the clean sample `clean`: the inverse of `to_clean`, affine in `clean`."""
        return self.prediction.from_clean(clean, noisy, *self.coefficients(timesteps, noisy))

    def to_noise(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise that the network's output implies."""
        return self.prediction.to_noise(output, noisy, *self.coefficients(timesteps, noisy))

    def loss_weight(self, timesteps: Tensor, snr_gamma: float, snr_floor: float = 0.0) -> Tensor:
        """Return the weight of the squared error on the network's own target, shape of `timesteps`.

        max(min(SNR, gamma), floor) on the clean sample, converted to the target in use: min-SNR (Hang et al. 2023,
        arXiv 2303.09556, sec. 3.4), and truncated SNR (Salimans and Ho 2022, arXiv 2202.00512, sec. 4).
        """
        snr, sigma = self.snr(timesteps), self.signal_and_sigma(timesteps)[1]
        snr = snr.clamp(torch.finfo(snr.dtype).tiny, torch.finfo(snr.dtype).max)
        return self.prediction.weight(snr.clamp(snr_floor or None, snr_gamma), snr, sigma).float()

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the ratio of signal to noise, (s / sigma)^2, shape of `timesteps`."""
        signal, sigma = self.signal_and_sigma(timesteps)
        return (signal / sigma).square()
