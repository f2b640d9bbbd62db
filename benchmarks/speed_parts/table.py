"""The rows of the table: a figure, its interval, its aim."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure; `value` is None where it could not be measured, and `note` says why."""

    what: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = "x"
    at_most: float | None = None  #: the aim
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the aim is held; empty without an aim or a figure."""
        if self.at_most is None or self.value is None:
            return ""
        return "held" if self.value <= self.at_most else "missed"

    def text(self) -> str:
        """Return the row as a line of the table."""
        figure = "not measured" if self.value is None else f"{self.value:.3f} {self.unit}"
        interval = "" if self.low is None else f"[{self.low:.3f}, {self.high:.3f}]"
        aim = "" if self.at_most is None else f"aim <= {self.at_most:g}"
        return f"{self.what:58s} {figure:>14s} {interval:16s} {aim:11s} {self.verdict:6s} {self.note}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """Return what the JSON file holds of the row."""
        return {**asdict(self), "verdict": self.verdict}


def row_of(what: str, values: list[float], **more: Any) -> Row:
    """Return the row of the median of `values` with its interval."""
    median, low, high = median_interval(values)
    return Row(what, median, low, high, **more)


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the order statistics that bound it with at least 95 % confidence.

    Fewer than six values cannot; of them, the smallest and the largest.
    """
    ordered, n = sorted(values), len(values)
    skip = 0  # on each side; P(Binomial(n, 1/2) <= skip) stays within 2.5 %
    while sum(math.comb(n, k) for k in range(skip + 2)) <= 0.025 * 2**n:
        skip += 1
    return statistics.median(ordered), ordered[skip], ordered[n - 1 - skip]
