"""Between the data's units and the network's space: an affine map, or an autoencoder (see `denoisers.autoencoder`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Codec(nn.Module, ABC):
    """Constraints, rewards, evaluations and exports see decoded data; the network sees encoded data.

    Attributes:
        settings: what makes it again, in plain JSON types.
    """

    settings: dict[str, Any]

    @abstractmethod
    def encode(self, data: Tensor) -> Tensor:
        """Map data `(B, *data_shape)` to the network's space, `(B, *shape)`."""

    @abstractmethod
    def decode(self, encoded: Tensor) -> Tensor:
        """Map `(B, *shape)` of the network's space to the data's units; the gradient passes."""

    def clamp(self, encoded: Tensor) -> Tensor:
        """Clamp to the data's range, where there is one; the gradient passes straight through."""
        return encoded

    def data_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one sample of data for `shape`, that of one sample of the network."""
        return shape
