"""The order of training data, as a function of (seed, position): no hidden state, any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import distributed
from torch.utils.data import DistributedSampler

from constrained_diffusion.runtime.randomness import keyed_generator


class KeyedSampler(DistributedSampler[int]):
    """Yields this rank's rows of global batch 0, 1, 2, ... of an endless shuffled stream.

    `position` is the global batch drawn last (-1: none yet); it is the whole state. A pass over the data is a
    permutation keyed by (seed, pass); a global batch is a run of `batch_size` of its entries, and rank r takes the r-th
    piece, `share` rows, so that any number of ranks makes the same steps from the same rows. It is a DistributedSampler
    so that Lightning leaves it as it is.

    Args:
        size: number of items in the data set.
        batch_size: rows of a global batch, which all ranks share evenly.
        seed: keys the order.

    Raises:
        ValueError: the ranks cannot share a batch evenly, or the data set is smaller than one.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.world = distributed.get_world_size() if distributed.is_initialized() else 1
        self.global_rank = distributed.get_rank() if distributed.is_initialized() else 0
        super().__init__(range(size), num_replicas=self.world, rank=self.global_rank, seed=seed)  # type: ignore[arg-type]
        self.size, self.batch_size, self.share = size, batch_size, batch_size // self.world
        self.batches = size // batch_size
        if batch_size % self.world:
            fitting = max(self.share, 1) * self.world
            raise ValueError(
                f"batch_size is the rows of a step on all ranks together, which share them evenly: expected a multiple "
                f"of {self.world} for {self.world} ranks, got {batch_size}; take {fitting}, or another number of "
                "devices."
            )
        if self.batches < 1:
            raise ValueError(
                f"the training set has {size} items, fewer than one batch of {batch_size}; lower batch_size or add "
                "data."
            )
        self.position = -1
        self._order = lru_cache(maxsize=1)(self._draw_order)

    def _draw_order(self, data_pass: int) -> torch.Tensor:
        return torch.randperm(self.size, generator=keyed_generator(self.seed, data_pass))

    def rows(self, position: int) -> list[int]:
        """Return this rank's data set indices of the global batch at `position`."""
        data_pass, batch = divmod(position, self.batches)
        start = batch * self.batch_size + self.global_rank * self.share
        rows: list[int] = self._order(data_pass)[start : start + self.share].tolist()
        return rows

    def repeat(self, batches: int) -> None:
        """Draw the last `batches` global batches once more (Algorithm 1's inner loop, with fresh noise)."""
        self.position -= batches

    def __len__(self) -> int:
        return self.batches * self.share

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.batches):
            self.position += 1
            yield from self.rows(self.position)
