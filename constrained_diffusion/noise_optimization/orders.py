"""Random orders of a long vector, drawn cheaply, and the two moments of a vector read in each of them.

Read in an order Pi, a vector z of n numbers is a matrix of m = n / k rows of k numbers (D section 3.1). What the
concentration bounds look at are its column means and its k x k matrix of second moments.

Drawing 100 permutations of a million numbers one by one costs more than everything else. Here one permutation `base` of
all numbers cuts them into R blocks, and every order permutes the blocks alone; a block is moved as one piece of memory.
The orders of one draw share `base`, which adds to the variance of the estimate over draws, the less the more blocks
there are; `benchmarks/prno_regularizer.py` prints how much.

| paper | code | shape |
|---|---|---|
| z | `noise` | `(B, n)` |
| q orders Pi | `Orders` | |
| M_1's vector, column means | `Moments.mean` | `(B, q, k)` |
| second moments | `Moments.second` | `(B, q, k, k)` |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.runtime.randomness import keyed_generator

BLOCK = 32  #: numbers that move together, at most
BLOCKS = 8192  #: blocks that there must be at least, for one to hold more than a single number
CHUNK = 1 << 20  #: numbers gathered at a time: what a processor's cache holds


@dataclass(frozen=True)
class Orders:
    """q orders of n numbers: `base` `(n,)` or None for the identity, then `blocks` `(q, R)`."""

    base: Tensor | None
    blocks: Tensor
    size: int  #: n

    def to(self, device: torch.device | str) -> Orders:
        """Return the same orders on a device."""
        base = None if self.base is None else self.base.to(device)
        return Orders(base, self.blocks.to(device), self.size)

    def indices(self, k: int) -> Tensor:
        """Return each order written out, `(q, n)`: `noise[:, indices[i]].view(B, n // k, k)` is order i's matrix."""
        count, length = self.blocks.shape[1], self.size // self.blocks.shape[1]
        places = self.blocks[..., None] * length + torch.arange(length, device=self.blocks.device)
        columns = places.reshape(len(self.blocks), k, count // k * length)
        flat = columns.transpose(1, 2).reshape(len(self.blocks), self.size)
        return flat if self.base is None else self.base[flat]


class Moments(NamedTuple):
    """Moments about 0 of the m rows that each order makes of z."""

    mean: Tensor  #: `(B, q, k)`
    second: Tensor  #: `(B, q, k, k)`, v^T v / m


def block_length(size: int, k: int) -> int:
    """Return the largest power of two, at most BLOCK, that cuts `size` numbers into enough blocks for k columns.

    >>> block_length(835_584, 2), block_length(7_840, 2)
    (32, 1)
    """
    length = 1
    while 2 * length <= BLOCK and size % (2 * length * k) == 0 and size // (2 * length) >= BLOCKS:
        length *= 2
    return length


def draw_orders(size: int, k: int, count: int, key: tuple[int, ...], block: int | None = None) -> Orders:
    """Draw `count` orders of `size` numbers, on the CPU; the same key gives the same orders.

    Args:
        size: n.
        k: length of a row.
        count: q.
        key: of `randomness.mix`.
        block: numbers that move together; `block_length` by default, 1 permutes every number.

    Raises:
        ValueError: k does not divide n, or the blocks do not fill k columns.
    """
    check_size(size, k)
    length = block or block_length(size, k)
    if size % (length * k):
        raise ValueError(f"blocks of {length} numbers do not fill {k} columns of {size} numbers evenly.")
    generator = keyed_generator(*key)
    base = torch.randperm(size, generator=generator) if length > 1 else None
    blocks = torch.empty(count, size // length, dtype=torch.long)
    for order in blocks:
        torch.randperm(size // length, generator=generator, out=order)
    return Orders(base, blocks, size)


def check_size(size: int, k: int) -> None:
    """Raise ValueError where a vector of `size` numbers cannot be cut into rows of k."""
    if k < 1 or size < 1 or size % k:
        raise ValueError(
            f"k must divide the number of noise variables of a sample, {size}, but got k={k}; choose a divisor, "
            "such as 1."
        )


def natural_moments(noise: Tensor, k: int) -> Moments:
    """Return the moments of `noise` `(B, n)` in the order in which it lies, with q = 1; differentiable."""
    rows = noise.reshape(len(noise), 1, -1, k)
    return Moments(rows.mean(2), rows.transpose(2, 3) @ rows / rows.shape[2])


def moments(noise: Tensor, orders: Orders, k: int) -> Moments:
    """Return the moments of `noise` `(B, n)` in each of the orders; differentiable once, in memory of one chunk."""
    mean, second = _Moments.apply(noise, orders, k)
    return Moments(mean, second)


class _Moments(torch.autograd.Function):
    """Reads the blocks in each order twice, forward and backward, instead of keeping q copies of the noise."""

    @staticmethod
    def forward(ctx: Any, noise: Tensor, orders: Orders, k: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(noise)
        ctx.orders, ctx.k = orders, k
        blocks, chunk = _as_blocks(noise, orders)
        sums = torch.stack([blocks.sum(2), blocks.square().sum(2)], 1)
        means, seconds = [], []
        for order in orders.blocks.split(chunk):
            mean, square = _take(sums, 2, order).unflatten(3, (k, -1)).sum(4).unbind(1)
            second = square.diag_embed()
            columns = _take(blocks, 1, order).unflatten(2, (k, -1)).flatten(3).unbind(2)
            for i in range(k):
                for j in range(i + 1, k):
                    second[..., i, j] = second[..., j, i] = (columns[i] * columns[j]).sum(2)
            means.append(mean)
            seconds.append(second)
        m = orders.size // k
        return torch.cat(means, 1) / m, torch.cat(seconds, 1) / m

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (noise,), orders, k = ctx.saved_tensors, ctx.orders, ctx.k
        blocks, chunk = _as_blocks(noise, orders)
        slots = blocks.shape[1] // k
        linear, symmetric = (gradient / (orders.size // k) for gradient in gradients)
        symmetric = symmetric + symmetric.transpose(2, 3)
        # The terms of one column alone add a number to each block, or multiply it.
        offset, factor, crossed = (torch.zeros_like(x) for x in (blocks[..., 0], blocks[..., 0], blocks))
        # Most orders lie inside the bounds, where the gradient is 0: these need no second reading.
        live = ((linear != 0).any(2) | (symmetric != 0).flatten(2).any(2)).any(0).nonzero().squeeze(1)
        for chosen in live.split(chunk):
            order, of_order = orders.blocks[chosen], symmetric[:, chosen]
            offset += _put(linear[:, chosen], order).sum(1)
            factor += _put(of_order.diagonal(dim1=2, dim2=3), order).sum(1)
            for step in range(1, k):  # each block with the one that stands `step` columns further in its row
                partner = torch.empty_like(order).scatter_(1, order, order.roll(-step * slots, 1))
                weight = of_order.roll(-step, 3).diagonal(dim1=2, dim2=3)
                for index, w in enumerate(_put(weight, order).unbind(1)):
                    crossed.addcmul_(w[..., None], blocks.index_select(1, partner[index]))
        flat = crossed.addcmul_(factor[..., None], blocks).add_(offset[..., None]).view_as(noise)
        if orders.base is None:
            return flat, None, None
        return torch.empty_like(flat).index_copy_(1, orders.base, flat), None, None


def _take(values: Tensor, dim: int, order: Tensor) -> Tensor:
    """Return `values` with its blocks, along `dim`, in each of the orders `(c, R)`."""
    taken: Tensor = values.index_select(dim, order.flatten()).unflatten(dim, order.shape)
    return taken


def _put(values: Tensor, order: Tensor) -> Tensor:
    """Return, for each block, the value of the column in which each order puts it: `(B, c, k)` -> `(B, c, R)`."""
    spread = values.repeat_interleave(order.shape[1] // values.shape[2], 2)
    return torch.empty_like(spread).scatter_(2, order.expand_as(spread), spread)


def _as_blocks(noise: Tensor, orders: Orders) -> tuple[Tensor, int]:
    flat = noise if orders.base is None else noise[:, orders.base]
    chunk = max(1, CHUNK // max(1, noise.numel()))
    return flat.reshape(len(noise), orders.blocks.shape[1], -1), chunk
