"""Rows of a CSV file that somebody wrote, with the numbers of their lines."""

from __future__ import annotations

import csv
from pathlib import Path

Row = dict[str, str | None]


def read_csv(path: Path, marks: str = "\t;") -> tuple[list[str], list[tuple[int, Row]]]:
    """Return the header of a CSV file, and each row with its line; a value that is missing is None.

    Args:
        path: of the file; a byte-order mark, as spreadsheets write it, is no part of the first column.
        marks: what may separate values in place of a comma; the first that the header has does.

    Raises:
        ValueError: a row has more values than the header, or is none; the line is named.
    """
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    table = csv.DictReader(lines, delimiter=next((mark for mark in marks if mark in lines[0]), ","))
    rows: list[tuple[int, Row]] = []
    try:
        header = list(table.fieldnames or [])
        for row in table:
            if None in row:
                raise ValueError(
                    f"line {table.line_num} of '{path}' expects {len(header)} values, got more; write numbers with a "
                    "point, and quote what holds a comma."
                )
            rows.append((table.line_num, row))
    except csv.Error as error:
        raise ValueError(f"line {table.line_num + 1} of '{path}' is no row ({error}); mend it.") from error
    return header, rows
