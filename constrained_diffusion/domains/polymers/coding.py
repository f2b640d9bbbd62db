"""Token numbers as the tensors that a diffusion model makes, `(B, C, L)` in [0, 1], and back.

| coding | C | a sample is read as | an error of one half in one value |
|---|---|---|---|
| `OneHot` | V, one channel per token | the largest channel | ties with one other token |
| `AnalogBits` (Chen et al. 2022, arXiv 2208.04202) | ceil(log2 V) | each bit rounded | one bit: some other token |
| `Ordinal`, PolyGen's | 1 | the nearest of V numbers | several tokens off, and unrelated ones |
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Coding(ABC):
    """How `size` tokens become values.

    Args:
        size: V, of the vocabulary, END included.

    Raises:
        ValueError: fewer than two tokens.
    """

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ValueError(f"a coding expects a vocabulary of at least 2 tokens, END included, got {size}.")
        self.size = size

    @property
    @abstractmethod
    def channels(self) -> int:
        """C."""

    @abstractmethod
    def encode(self, numbers: Tensor) -> Tensor:
        """Return numbers `(B, L)`, int64 in 0 .. V - 1, as values `(B, C, L)`, float32 in [0, 1]."""

    @abstractmethod
    def decode(self, values: Tensor) -> Tensor:
        """Return the numbers `(B, L)` that values `(B, C, L)` are nearest to; any finite value is near one."""


class OneHot(Coding):
    """One channel per token; no two tokens are nearer to each other than any others."""

    @property
    def channels(self) -> int:
        return self.size

    def encode(self, numbers: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(numbers, self.size).mT.float()

    def decode(self, values: Tensor) -> Tensor:
        return values.argmax(1)


class AnalogBits(Coding):
    """The bits of the number, one channel each, the highest first."""

    @property
    def channels(self) -> int:
        return (self.size - 1).bit_length()

    def encode(self, numbers: Tensor) -> Tensor:
        return (numbers[:, None] // self._powers(numbers) % 2).float()

    def decode(self, values: Tensor) -> Tensor:
        numbers: Tensor = ((values > 0.5).long() * self._powers(values)).sum(1)
        return numbers.clamp(max=self.size - 1)  # bits may spell a number that no token has

    def _powers(self, like: Tensor) -> Tensor:
        return 2 ** torch.arange(self.channels - 1, -1, -1, device=like.device)[:, None]


class Ordinal(Coding):
    """The number over V - 1, one channel: neighbours in the vocabulary are unrelated, so rounding changes the atom."""

    @property
    def channels(self) -> int:
        return 1

    def encode(self, numbers: Tensor) -> Tensor:
        return numbers[:, None].float() / (self.size - 1)

    def decode(self, values: Tensor) -> Tensor:
        return (values[:, 0] * (self.size - 1)).round().long().clamp(0, self.size - 1)


CODINGS: dict[str, type[Coding]] = {"one_hot": OneHot, "analog_bits": AnalogBits, "ordinal": Ordinal}


def coding(name: str, size: int) -> Coding:
    """Return the coding called `name` of a vocabulary of `size` tokens.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in CODINGS:
        raise ValueError(f"coding must be one of {', '.join(CODINGS)}, got '{name}'.")
    return CODINGS[name](size)
