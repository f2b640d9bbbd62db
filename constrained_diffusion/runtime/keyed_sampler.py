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
    permutation keyed by (seed, pass); a global batch is a run of `batch_size * world` of its entries, and rank r takes
    the r-th piece, so that two ranks of b see what one rank of 2 b sees. It is a DistributedSampler so that Lightning
    leaves it as it is.

    Args:
        size: number of items in the data set.
        batch_size: rows per rank and batch.
        seed: keys the order.

    Raises:
        ValueError: the data set is smaller than one global batch.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.world = distributed.get_world_size() if distributed.is_initialized() else 1
        self.global_rank = distributed.get_rank() if distributed.is_initialized() else 0
        super().__init__(range(size), num_replicas=self.world, rank=self.global_rank, seed=seed)  # type: ignore[arg-type]
        self.size, self.batch_size = size, batch_size
        self.batches = size // (batch_size * self.world)
        if self.batches < 1:
            raise ValueError(
                f"the training set has {size} items, fewer than one batch of {batch_size} on {self.world} rank(s); "
                "lower batch_size or add data."
            )
        self.position = -1
        self._order = lru_cache(maxsize=1)(self._draw_order)

    def _draw_order(self, data_pass: int) -> torch.Tensor:
        return torch.randperm(self.size, generator=keyed_generator(self.seed, data_pass))

    def rows(self, position: int) -> list[int]:
        """Return this rank's data set indices of the global batch at `position`."""
        data_pass, batch = divmod(position, self.batches)
        start = (batch * self.world + self.global_rank) * self.batch_size
        rows: list[int] = self._order(data_pass)[start : start + self.batch_size].tolist()
        return rows

    def repeat(self, batches: int) -> None:
        """Draw the last `batches` global batches once more (Algorithm 1's inner loop, with fresh noise)."""
        self.position -= batches

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.batches):
            self.position += 1
            yield from self.rows(self.position)
