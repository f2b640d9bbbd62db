"""The same steps with a compiled network (`torch.compile`), over the network as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from speed_parts.step import Step, alternating
from speed_parts.table import Row, row_of


def rows(given: Any) -> Iterator[Row]:
    """Yield compiled over not compiled, for both kinds of steps, and the compiled penalty step over the plain one."""
    plain, constrained = Step(None, given), Step("algorithm1", given)
    compiled = {"plain": Step(None, given), "algorithm1": Step("algorithm1", given)}
    for step in compiled.values():
        step.module.denoiser.network.compile()
    start = time.perf_counter()
    try:
        for step in compiled.values():
            step(step.batch(given.batch_size))
    except Exception as error:  # no C++ compiler on a CPU, no Triton on a GPU: whatever torch says then
        reason = f"torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}"
        yield Row("compiled step / not compiled", None, note=reason)
        return
    note = f"compiling took {time.perf_counter() - start:.0f} s"
    _, ratios = alternating(plain, {"plain": compiled["plain"]}, given)
    yield row_of("compiled plain step / not compiled", ratios["plain"], note=note)
    _, ratios = alternating(constrained, {"algorithm1": compiled["algorithm1"]}, given)
    yield row_of("compiled step of algorithm1 / not compiled", ratios["algorithm1"])
    _, ratios = alternating(compiled["plain"], {"algorithm1": compiled["algorithm1"]}, given)
    yield row_of("compiled step of algorithm1 / compiled plain", ratios["algorithm1"])
