"""Random numbers keyed by (seed, step, global row), so that ranks, resumes and batch sizes agree by construction.

There is no hidden generator state: the numbers of a row depend on its key alone, whichever process draws them.
Drawing happens on the CPU, because CUDA and CPU generators differ. Torch's CPU generator keeps 32 bits of a seed, so
that among n rows about n^2 / 2^33 pairs share their numbers: none among 100,000 evaluation samples, a few in a long
training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Keys = Sequence[tuple[int, ...]]  #: one per row, from which alone its random numbers follow
_MASK = (1 << 64) - 1


def mix(*keys: int) -> int:
    """Hash integers to one 63-bit seed (splitmix64 finaliser, chained); neighbouring keys give unrelated seeds.

    >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
    (True, False)
    """
    state = 0x9E3779B97F4A7C15
    for key in keys:
        state = (state ^ (key & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 30)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
        state = (state + 0x9E3779B97F4A7C15) & _MASK
    return state >> 1


def keyed_generator(*keys: int) -> torch.Generator:
    """Return a CPU generator seeded by `mix(*keys)`."""
    return torch.Generator().manual_seed(mix(*keys))


def keyed_normal(keys: Sequence[tuple[int, ...]], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal numbers of shape `(len(keys), *shape)`; row i depends on `keys[i]` alone."""
    out = torch.empty(len(keys), *shape, dtype=dtype)
    generator = torch.Generator()
    for row, key in zip(out, keys, strict=True):
        row.normal_(generator=generator.manual_seed(mix(*key)))
    return out


def stratified_timesteps(
    seed: int, step: int, rows: range, global_batch: int, num_timesteps: int, max_timestep: float | None = None
) -> Tensor:
    """Return the timesteps of `rows` of one global batch, shape `(len(rows),)`, float64 in [0, num_timesteps).

    The batch's timesteps are spread evenly (one per stratum, in an order drawn for the step). With `max_timestep`
    (T_phi) the strata are split there, so that round(global_batch * T_phi / T) rows, the same number in every step, lie
    below it.
    """
    generator = keyed_generator(seed, step, -1)
    order = torch.randperm(global_batch, generator=generator)
    jitter = torch.rand(global_batch, generator=generator, dtype=torch.float64)
    low, high = max_timestep if max_timestep is not None else num_timesteps, num_timesteps
    below = round(global_batch * low / high)
    below = max(below, 1) if low > 0 else 0
    stratum = (order + jitter).to(torch.float64)
    under = (stratum / max(below, 1) * low).clamp(max=math.nextafter(low, 0))  # rounding up must not cross T_phi
    above = low + (stratum - below) / max(global_batch - below, 1) * (high - low)
    above = above.clamp(max=math.nextafter(high, 0))
    return torch.where(order < below, under, above)[rows.start : rows.stop]


def token_timesteps(
    timesteps: Tensor,
    tokens: int,
    share: float,
    seed: int,
    step: int,
    rows: range,
    global_batch: int,
    num_timesteps: int,
) -> Tensor:
    """Return a timestep for every token, `(B, tokens)`: its row's, but in a share of the rows.

    In half of these each token's is drawn by itself, uniformly (Diffusion Forcing). In the others the first and the
    last token are clean, at 0, with probability 1/2 each, as where a start and a goal are held.

    Args:
        timesteps: `(B,)`, the rows' own.
        tokens: L.
        share: of the rows whose tokens differ; rows are chosen by their global number.
        seed: keys the draw.
        step: keys it too.
        rows: the rows' numbers in the global batch.
        global_batch: its size; the share is even among its rows.
        num_timesteps: T.
    """
    if rows.stop > global_batch:
        raise ValueError(f"expected rows of a batch of {global_batch}, got {rows}.")
    levels = timesteps[:, None].repeat(1, tokens)
    for level, row in zip(levels, rows, strict=True):
        count = int((row + 1) * share)
        if count == int(row * share):  # evenly among the rows
            continue
        generator = keyed_generator(seed, step, row, tokens)
        if count % 2:
            level.copy_(torch.randint(num_timesteps, (tokens,), generator=generator))
        else:
            level[[0, -1]] *= torch.randint(2, (2,), generator=generator)
    return levels


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return `values`, drawn on the CPU, on `device`; the host does not wait for what a GPU still has to do."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def keyed_uniform(keys: Keys, stream: int, columns: int, like: Tensor) -> Tensor:
    """Return numbers in (0, 1), shape `(len(keys), columns)`, on the device of `like`."""
    normal = keyed_normal([(*key, stream) for key in keys], (columns,), torch.float64)
    uniform: Tensor = torch.special.ndtr(normal)
    return uniform.to(like)
