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

from constrained_diffusion.precision import never_half

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
        return super()._apply(never_half(fn), recurse)  # type: ignore[no-untyped-call, no-any-return]

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


class Normalizer(nn.Module):
    """The affine map between the data's units and the network's, with the data's range; it travels with the model.

    Args:
        mean, std: scalar, or per channel: a list that broadcasts against a sample from the right, [x, y] for plans
            `(L, 2)`, and nested for images `(3, H, W)`: [[[r]], [[g]], [[b]]].
        low, high: the range of valid data in the data's own units; predicted clean samples are clamped to it.
            None leaves a side open.

    Raises:
        ValueError: std is not positive, or the range is empty.

    Example:
        >>> Normalizer(mean=0.5, std=0.5, low=0.0, high=1.0).normalize(torch.tensor([0.0, 1.0]))
        tensor([-1.,  1.])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: float | Sequence[Any] = 0.0,
        std: float | Sequence[Any] = 1.0,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__()
        self.settings = {"mean": mean, "std": std, "low": low, "high": high}
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32))
        self.low, self.high = low, high
        if not bool((self.std > 0).all()):
            raise ValueError(f"Normalizer expects std > 0, got {std}.")
        if low is not None and high is not None and low >= high:
            raise ValueError(f"Normalizer expects low < high, got low={low}, high={high}.")

    def normalize(self, data: Tensor) -> Tensor:
        """Map data units to network units."""
        return (data - self.mean.to(data.dtype)) / self.std.to(data.dtype)

    def denormalize(self, normalized: Tensor) -> Tensor:
        """Map network units to data units."""
        return normalized * self.std.to(normalized.dtype) + self.mean.to(normalized.dtype)

    def clamp(self, normalized: Tensor) -> Tensor:
        """Clamp to the data's range; the gradient passes straight through, so that a clamped pixel can still move."""
        if self.low is None and self.high is None:
            return normalized
        clamped = self.normalize(self.denormalize(normalized).clamp(self.low, self.high))
        return clamped.detach() + (normalized - normalized.detach())  # the sum is `clamped` to the last bit


class MeasuredNormalizer(Normalizer):
    """A normaliser that takes mean and standard deviation from the data of the fit that pretrains its model.

    They are kept in checkpoints and exports, as those of any normaliser.

    Args:
        channels: how many numbers the last side of a sample has; each has its own mean and standard deviation.
        low: lower end of valid data, in the data's own units; None leaves it open.
        high: upper end.
    """

    def __init__(self, channels: int, low: float | None = None, high: float | None = None) -> None:
        super().__init__([0.0] * channels, [1.0] * channels, low, high)

    def measure(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take mean and standard deviation per channel.

        Raises:
            ValueError: they are of another length, or a deviation is not above 0.
        """
        measured = Normalizer(mean, std, self.low, self.high)
        if measured.mean.shape != self.mean.shape or measured.std.shape != self.std.shape:
            raise ValueError(
                f"MeasuredNormalizer has {len(self.mean)} channels, but the data has {len(mean)}; set `channels`."
            )
        self.settings = measured.settings
        self.mean.copy_(measured.mean)
        self.std.copy_(measured.std)
