"""The rows of a noise optimisation's finished samples, as `results.jsonl` holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

NUMBERS = ("reward_before", "reward", "probability_before", "probability", "best_step", "steps")  #: in every row


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all ranks in order of their keys; a line that was cut by a kill, or damaged, is left out."""
    rows = {}
    for file in sorted(folder.glob("results*.jsonl")):
        for line in file.read_text("utf-8", "replace").splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_whole(row):
                rows[row["key"]] = row
    return [rows[key] for key in sorted(rows)]


def _is_whole(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        return False
    values = [row.get(name) for name in NUMBERS]
    for name in ("rewards", "log_probabilities"):
        values += row[name] if isinstance(row.get(name), list) and row[name] else [None]
    return all(type(value) in (int, float) and _is_finite(value) for value in values)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond floats
        return False


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Return one sentence on all finished samples."""
    if not rows:
        return "No samples were optimised."
    before, after = (fmean(row[name] for row in rows) for name in ("reward_before", "reward"))
    typical = sum(row["probability"] >= 0.01 for row in rows)
    return (
        f"{len(rows)} samples: mean reward {before:.4g} -> {after:.4g}; "
        f"{typical} of {len(rows)} have typical noise (P(z) >= 0.01)."
    )
