from __future__ import annotations

from pathlib import Path

import pytest

from constrained_diffusion.domains.polymers.csv_rows import read_csv


@pytest.mark.parametrize(("mark", "coding"), [(",", "utf-8"), ("\t", "utf-8"), (";", "utf-8-sig")])
def test_rows_have_the_numbers_of_their_lines(tmp_path: Path, mark: str, coding: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"a{mark}b\n1{mark}2\n\n3\n", encoding=coding)
    assert read_csv(path) == (["a", "b"], [(2, {"a": "1", "b": "2"}), (4, {"a": "3", "b": None})])


def test_windows_ends_of_lines_and_quoted_ones(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b'a,b\r\n1,"x,\r\ny"\r\n')
    header, rows = read_csv(path)
    assert header == ["a", "b"]
    assert rows[0][1]["a"] == "1"
    assert (rows[0][1]["b"] or "").startswith("x,")


def test_an_empty_file_has_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("")
    assert read_csv(path) == ([], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1,2\n1,2,3", "line 3 of .* expects 2 values, got more"), ("a,b\n" + 200_000 * "C", "line 2 of .* no row")],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_csv(tmp_path / "table.csv")
