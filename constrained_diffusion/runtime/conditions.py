"""What samples are asked for: labels or prompts, in one order, by the place of a sample or by its seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.condition import Condition
from constrained_diffusion.runtime.prompt_file import rows_of


def asked(data: Any, seeds: Sequence[int]) -> Condition | None:
    """Return what the data module `data` asks of the samples of `seeds`, one row each; None where it asks nothing."""
    ask = getattr(data, "condition", None)
    found: Condition | None = None if ask is None else ask(list(seeds))
    return found


class Conditions(ABC):
    """What is asked of the samples 0, 1, ..; subclass it and write `of` and `names`."""

    @abstractmethod
    def of(self, places: Sequence[int], denoiser: Any) -> dict[str, Tensor]:
        """Return the condition of `denoiser` for the samples at `places` (or of these seeds), one row each."""

    def all_different(self, denoiser: Any) -> dict[str, Tensor]:
        """Return the condition of all that is ever asked for, where that is cheap, else of two samples."""
        return self.of([0, 1], denoiser)

    @abstractmethod
    def names(self, places: Sequence[int]) -> list[str]:
        """Return what people call each: the label, or the prompt."""


class Labels(Conditions):
    """Class labels in turn: place i is asked for the label `labels[i % len(labels)]`.

    Args:
        labels: the labels, or a number n that stands for 0, .., n - 1. A label may come more than once.
        name: of the network's argument.

    Raises:
        ValueError: there are none, or one is below 0.

    Example:
        >>> Labels([4, 7]).of([0, 1, 2], None)
        {'class_labels': tensor([4, 7, 4])}
    """

    def __init__(self, labels: int | list[int], name: str = "class_labels") -> None:
        self.labels = list(range(labels)) if isinstance(labels, int) else list(labels)
        if not self.labels or min(self.labels) < 0:
            raise ValueError(f"Labels expects at least one label, each at least 0, got {labels}.")
        self.name = name

    def of(self, places: Sequence[int], denoiser: Any) -> dict[str, Tensor]:
        return {self.name: torch.tensor([self.labels[place % len(self.labels)] for place in places])}

    def all_different(self, denoiser: Any) -> dict[str, Tensor]:
        return self.of(range(len(self.labels)), denoiser)

    def names(self, places: Sequence[int]) -> list[str]:
        return [str(self.labels[place % len(self.labels)]) for place in places]

    def __repr__(self) -> str:
        return f"Labels({self.labels}, {self.name!r})"


class Prompts(Conditions):
    """Prompts in turn, encoded by the pipeline's own text encoders: place i is asked for the prompt `i % n`.

    Args:
        prompts: the prompts themselves.
        prompt_file: path of a file with one JSON value per line, in their place; see `runtime.prompt_file`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: neither or both are given, there is no prompt, or a line is broken.
    """

    def __init__(self, prompts: list[str] | None = None, prompt_file: str | None = None) -> None:
        self.prompts = [row.prompt for row in rows_of(prompts, prompt_file, [0])]

    def of(self, places: Sequence[int], denoiser: Any) -> dict[str, Tensor]:
        encoded: dict[str, Tensor] = denoiser.encode(self.names(places))
        return encoded

    def names(self, places: Sequence[int]) -> list[str]:
        return [self.prompts[place % len(self.prompts)] for place in places]

    def __repr__(self) -> str:
        return f"Prompts({self.prompts})"
