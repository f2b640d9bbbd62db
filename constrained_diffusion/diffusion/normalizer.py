"""The affine map between the data's units and the network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.diffusion.codec import Codec


class Normalizer(Codec):
    """The affine map between the data's units and the network's, with the data's range; it travels with the model.

    Args:
        mean, std: scalar, or per channel: a list that broadcasts against a sample from the right, [x, y] for plans
            `(L, 2)`, and nested for images `(3, H, W)`: [[[r]], [[g]], [[b]]].
        low, high: the range of valid data in the data's own units; predicted clean samples are clamped to it.
            None leaves a side open.

    Raises:
        ValueError: std is not positive, or the range is empty.

    Example:
        >>> Normalizer(mean=0.5, std=0.5, low=0.0, high=1.0).encode(torch.tensor([0.0, 1.0]))
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

    def encode(self, data: Tensor) -> Tensor:
        """Map data units to network units."""
        return (data - self.mean.to(data.dtype)) / self.std.to(data.dtype)

    def decode(self, encoded: Tensor) -> Tensor:
        """Map network units to data units."""
        return encoded * self.std.to(encoded.dtype) + self.mean.to(encoded.dtype)

    def clamp(self, encoded: Tensor) -> Tensor:
        """Clamp to the data's range; the gradient passes straight through, so that a clamped pixel can still move."""
        if self.low is None and self.high is None:
            return encoded
        clamped = self.encode(self.decode(encoded).clamp(self.low, self.high))
        return clamped.detach() + (encoded - encoded.detach())  # the sum is `clamped` to the last bit


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
