"""Tables of preferences: which of two molecules was preferred.

| column | what |
|---|---|
| first, second | SMILES of the two |
| preferred | 1 where the first is preferred, 0 where the second is, 0.5 for a tie |
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.domains.polymers.csv_rows import read_csv

COLUMNS = ("first", "second", "preferred")


class Preferences(NamedTuple):
    """Pairs of molecules, and which one was preferred."""

    smiles: list[str]  #: distinct molecules
    pairs: Tensor  #: `(m, 2)`, int64, numbers of `smiles`
    outcomes: Tensor  #: `(m,)`, float32: 1, 0 or 0.5; see above

    def among(self, rows: set[int]) -> Preferences:
        """Return the pairs of which both molecules are in `rows`, numbers of `smiles`."""
        kept = [first in rows and second in rows for first, second in self.pairs.tolist()]
        return self._replace(pairs=self.pairs[kept], outcomes=self.outcomes[kept])


def read_preferences(path: Path, keep_contradictions: bool = False, spell: Callable[[str], str] = str) -> Preferences:
    """Read a table of preferences: CSV with a header (commas, tabs or semicolons), or JSONL with one object a line.

    Args:
        path: of the file.
        keep_contradictions: keep pairs that are there with different outcomes, as several raters leave them; the model
            then learns how often each was preferred.
        spell: gives two spellings of one molecule the same name, such as `along_backbone`; as they are by default.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: no such columns, an outcome that is none, a molecule compared with itself, no rows, or, unless kept,
            a pair that an earlier line says the opposite of; the line is named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a table of preferences at '{path}', found none; set the path.")
    numbers: dict[str, int] = {}
    pairs: list[list[int]] = []
    outcomes: list[float] = []
    said: dict[tuple[int, int], tuple[float, int]] = {}
    for line, row in _rows(path):
        where = f"line {line} of '{path}'"
        if not isinstance(row, dict) or not set(COLUMNS) <= set(row):
            found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{where} expects {', '.join(COLUMNS)}, got {found or 'nothing'}; rename the columns.")
        names = [str(row[side] or "") for side in COLUMNS[:2]]
        if all(names):
            try:
                names = [spell(name) for name in names]
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        if not all(names) or names[0] == names[1]:
            raise ValueError(f"{where} expects two different molecules, got '{names[0][:80]}' and '{names[1][:80]}'.")
        first, second = (numbers.setdefault(name, len(numbers)) for name in names)
        outcome = _outcome(row["preferred"], where)
        key, seen = (min(first, second), max(first, second)), outcome if first < second else 1 - outcome
        before, earlier = said.setdefault(key, (seen, line))
        if before != seen and not keep_contradictions:
            raise ValueError(
                f"{where} contradicts line {earlier}, which says otherwise of the same two molecules; mend one of "
                "them, or set keep_contradictions where several people were asked."
            )
        pairs.append([first, second])
        outcomes.append(outcome)
    if not pairs:
        raise ValueError(f"'{path}' holds no preferences; give at least one row.")
    return Preferences(list(numbers), torch.tensor(pairs), torch.tensor(outcomes))


def write_preferences(preferences: Preferences, path: Path) -> None:
    """Write a table that `read_preferences` reads, as CSV; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for (first, second), outcome in zip(preferences.pairs.tolist(), preferences.outcomes.tolist(), strict=True):
            table.writerow([preferences.smiles[first], preferences.smiles[second], f"{outcome:g}"])


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        yield from read_csv(path)[1]
        return
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")  # no other letter ends a line of JSON
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} of '{path}' expects a JSON object, got '{line[:80]}'.") from error


def _outcome(given: Any, where: str) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        value = -1.0
    if value not in (0.0, 0.5, 1.0):
        raise ValueError(
            f"{where} expects preferred to be 1 (the first), 0 (the second) or 0.5 (a tie), got '{given}'."
        )
    return value
