"""Peak memory of a step: what it allocates on top of weights and optimiser state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from dno_flops import peak_bytes

from speed_parts.step import Step, TwoPassStep, on_gpu
from speed_parts.table import Row


def peak(step: Step, given: Any) -> int:
    """Return the most bytes that a step holds of what it makes; on a CPU by counting live storages."""
    batch = step.batch(given.batch_size)
    step.once(batch)  # the optimiser's state is there from the first step on
    if not on_gpu():
        return peak_bytes(lambda: step.once(batch))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step.once(batch)
    return torch.cuda.max_memory_allocated() - before


def rows(given: Any) -> Iterator[Row]:
    """Yield the plain step's peak and the ratios of the others'."""
    plain = peak(Step(None, given), given)
    how = "torch.cuda.max_memory_allocated" if on_gpu() else "live storages"
    yield Row("peak memory of a plain step", plain / 2**20, unit="MiB", note=f"beyond weights and states, by {how}")
    for name in ("algorithm1", "anchored_algorithm1", "conditioned_algorithm1"):
        yield Row(f"peak memory of {name} / plain", peak(Step(name, given), given) / plain)
    yield Row("peak memory of the naive step / plain", peak(TwoPassStep(given), given) / plain)
