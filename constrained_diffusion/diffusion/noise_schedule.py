"""The forward process and the conversions between what a network may predict.

| paper | code | shape |
|---|---|---|
| x_0 | `clean` | `(B, *shape)` |
| x_t | `noisy` | `(B, *shape)` |
| epsilon, epsilon_theta | `noise`, `predicted_noise` | `(B, *shape)` |
| t | `timesteps` | `(B,)`, or `(B, L)` for one noise level per token of `(B, L, ...)` |
| alpha-bar_t | `alphas_cumprod[timesteps]` | buffer `(T,)` |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from constrained_diffusion.runtime.precision import keep_float32

PredictionType = Literal["epsilon", "sample", "v_prediction"]


class NoiseSchedule(nn.Module):
    """alpha-bar as a buffer, and the algebra between clean sample, noise and velocity.

    Args:
        alphas_cumprod: alpha-bar_t for t = 0 .. T-1, shape `(T,)`, in [0, 1], never rising.
        prediction_type: what the network returns: the noise, the clean sample, or v = sqrt(abar) eps - sqrt(1-abar) x0.

    Raises:
        ValueError: alpha-bar is not such a sequence, or the prediction type is unknown.
    """

    alphas_cumprod: Tensor

    def __init__(self, alphas_cumprod: Tensor | Sequence[float], prediction_type: PredictionType = "epsilon") -> None:
        super().__init__()
        abar = torch.as_tensor(alphas_cumprod, dtype=torch.float32)
        valid = abar.ndim == 1 and len(abar) > 0 and bool(((abar >= 0) & (abar <= 1)).all())
        if not valid or bool((abar.diff() > 0).any()):
            values = f"values from {abar.flatten()[0]:.3g} to {abar.flatten()[-1]:.3g}" if abar.numel() else "no values"
            raise ValueError(
                "NoiseSchedule expects alphas_cumprod of shape (T,), in [0, 1] and never rising; "
                f"got shape {tuple(abar.shape)} with {values}."
            )
        if prediction_type not in get_args(PredictionType):
            raise ValueError(
                f"prediction_type must be one of {', '.join(get_args(PredictionType))}, got '{prediction_type}'; "
                "flow-matching models are not supported."
            )
        self.prediction_type = prediction_type
        self.register_buffer("alphas_cumprod", abar)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # In half precision alpha-bar of small t would be 1, and sigma 0.
        return super()._apply(keep_float32(fn), recurse)  # type: ignore[no-untyped-call, no-any-return]

    @property
    def num_timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.alphas_cumprod)

    def levels(self) -> list[float]:
        """Return alpha-bar as Python floats, which compute in double precision and leave a tensor's dtype as it is."""
        values: list[float] = self.alphas_cumprod.tolist()
        return values

    def coefficients(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(alpha-bar) and sqrt(1 - alpha-bar) at `timesteps`, shaped to broadcast against `like`."""
        abar = self.alphas_cumprod[timesteps]
        abar = abar.to(torch.promote_types(abar.dtype, like.dtype))  # in bfloat16, 1 - alpha-bar is 0 at small t
        abar = abar.reshape(abar.shape + (1,) * (like.ndim - abar.ndim))
        return abar.sqrt().to(like.dtype), (1 - abar).sqrt().to(like.dtype)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (P eq. 6), shape of `clean`."""
        signal, sigma = self.coefficients(timesteps, clean)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network should output for this clean sample and noise, in its own prediction type."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        signal, sigma = self.coefficients(timesteps, clean)
        return signal * noise - sigma * clean

    def to_clean(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return x-hat(x_t, t) from the network's output (P Alg. 1), not clamped."""
        signal, sigma = self.coefficients(timesteps, noisy)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * output) / signal
        if self.prediction_type == "sample":
            return output
        return signal * noisy - sigma * output

    def from_clean(self, clean: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return the output that means the clean sample `clean`: the inverse of `to_clean`, affine in `clean`."""
        signal, sigma = self.coefficients(timesteps, noisy)
        if self.prediction_type == "epsilon":
            return (noisy - signal * clean) / sigma
        if self.prediction_type == "sample":
            return clean
        return (signal * noisy - clean) / sigma

    def to_noise(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise that the network's output implies."""
        signal, sigma = self.coefficients(timesteps, noisy)
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type == "sample":
            return (noisy - signal * output) / sigma
        return sigma * noisy + signal * output

    def loss_weight(self, timesteps: Tensor, snr_gamma: float, snr_floor: float = 0.0) -> Tensor:
        """Return the weight of the squared error on the network's own target, shape of `timesteps`.

        max(min(SNR, gamma), floor) on the clean sample, converted to the target in use: min-SNR (Hang et al. 2023,
        arXiv 2303.09556, sec. 3.4), and truncated SNR (Salimans and Ho 2022, arXiv 2202.00512, sec. 4).
        """
        abar = self.alphas_cumprod[timesteps]
        snr = abar / (1 - abar)
        if self.prediction_type == "epsilon":
            weight = (snr_gamma / snr).clamp(max=1)
            return weight.maximum(snr_floor / snr) if snr_floor else weight
        weight = snr.clamp(min=snr_floor, max=snr_gamma)
        return weight if self.prediction_type == "sample" else weight / (snr + 1)
