"""Who sees which units: the split of a table that all models of polymers share.

| part | share | seen by |
|---|---|---|
| held out | a tenth | nobody in training |
| preferences | three quarters of the rest | generator, preference model |
| judge | the other quarter | generator, judge |
"""

from __future__ import annotations

import torch

from constrained_diffusion.runtime.randomness import keyed_generator

STREAM = 6  #: of random numbers


def train_and_held_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the numbers of `count` units to train on and of those held out, each in rising order.

    Raises:
        ValueError: a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"held_out is a share in (0, 1), got {share}.")
    order = torch.randperm(count, generator=keyed_generator(STREAM, seed)).tolist()
    cut = round(count * share)
    return sorted(order[cut:]), sorted(order[:cut])


def preferences_and_judge(train: list[int]) -> tuple[list[int], list[int]]:
    """Return the units that preferences are about, and those that the judge learns from, every fourth one.

    >>> preferences_and_judge([3, 5, 7, 8, 9])
    ([3, 7, 8, 9], [5])
    """
    judge = train[1::4]
    chosen = set(judge)
    return [row for row in train if row not in chosen], judge
