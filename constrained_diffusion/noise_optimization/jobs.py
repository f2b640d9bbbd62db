"""The samples that a noise optimisation draws, each with a name of its own."""

from __future__ import annotations

from typing import NamedTuple


class Job(NamedTuple):
    """One sample to draw."""

    key: str  #: names it, and its files: the prompt's place in the list and the seed, as in "00002-7"
    prompt: str | None  #: None for models that take none
    seed: int
