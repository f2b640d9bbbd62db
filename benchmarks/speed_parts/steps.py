"""Time of a constrained step over a plain diffusion step: same network, same batch, alternating."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from speed_parts.step import Step, TwoPassStep, alternating, on_gpu
from speed_parts.table import Row, row_of

HELD = 1.40  #: what holding to the frozen model may cost: one more forward pass


def aims() -> dict[str, float]:
    """Return the aim of each formulation."""
    return {
        "algorithm1": 1.03 if on_gpu() else 1.05,
        "anchored_algorithm1": HELD,
        "conditioned_algorithm1": HELD,
    }


def rows(given: Any) -> Iterator[Row]:
    """Yield the plain step's seconds and the ratios."""
    plain = Step(None, given)
    others: dict[str, Step] = {name: Step(name, given) for name in aims()}
    seconds, ratios = alternating(plain, {**others, "naive": TwoPassStep(given)}, given)
    millions = sum(p.numel() for p in plain.module.denoiser.network.parameters()) / 1e6
    note = f"{millions:.1f} M parameters, batch {given.batch_size}, {given.precision}, {given.pairs} pairs"
    yield row_of("plain step", [1000 * s for s in seconds], unit="ms", note=note)
    for name, limit in aims().items():
        yield row_of(f"step of {name} / plain", ratios[name], at_most=limit)
    yield row_of("naive step, two passes / plain", ratios["naive"])
