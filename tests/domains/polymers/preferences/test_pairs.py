"""Tables of preferences, read, refused and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from constrained_diffusion.domains.polymers.preferences.pairs import (
    COLUMNS,
    Preferences,
    read_preferences,
    write_preferences,
)

ROWS = [("CC", "CO", "1"), ("CN", "CC", "0"), ("CO", "CN", "0.5")]
kinds = pytest.mark.parametrize("suffix", [".csv", ".jsonl"])


def write(folder: Path, rows: list[tuple[str, str, str]], suffix: str = ".csv") -> Path:
    path = folder / f"pairs{suffix}"
    if suffix == ".csv":
        path.write_text("\n".join(",".join(row) for row in [COLUMNS, *rows]))
    else:
        path.write_text("\n\n".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows))
    return path


@kinds
def test_molecules_are_numbered_as_they_come(tmp_path: Path, suffix: str) -> None:
    found = read_preferences(write(tmp_path, ROWS, suffix))
    assert found.smiles == ["CC", "CO", "CN"]
    assert found.pairs.tolist() == [[0, 1], [2, 0], [1, 2]]
    assert found.outcomes.tolist() == [1.0, 0.0, 0.5]
    assert (found.pairs.dtype, found.outcomes.dtype) == (torch.int64, torch.float32)


def test_columns_in_another_order_with_others_between_and_excels_mark(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("preferred,rater,second,first\n1,Ada,CO,CC\n\n0,Bo,CN,CC\n", encoding="utf-8-sig")
    found = read_preferences(path)
    assert found.smiles == ["CC", "CO", "CN"]
    assert (found.pairs.tolist(), found.outcomes.tolist()) == ([[0, 1], [0, 2]], [1.0, 0.0])
    lines = tmp_path / "pairs.jsonl"
    lines.write_text('{"first": "CC", "second": "CO", "preferred": 0, "rater": "Ada"}')
    assert read_preferences(lines).outcomes.tolist() == [0.0]


@kinds
@pytest.mark.parametrize(
    "again",
    [("CC", "CO", "0"), ("CO", "CC", "1"), ("CC", "CO", "0.5"), ("CO", "CC", "0.5")],
)
def test_contradictions_are_found_either_way_round(tmp_path: Path, suffix: str, again: tuple[str, str, str]) -> None:
    path = write(tmp_path, [*ROWS, again], suffix)
    lines = (5, 2) if suffix == ".csv" else (7, 1)  # of JSON every second line is empty
    with pytest.raises(ValueError, match=f"line {lines[0]} of '.*' contradicts line {lines[1]}, .*keep_contradictions"):
        read_preferences(path)
    kept = read_preferences(path, keep_contradictions=True)
    assert len(kept.pairs) == 4
    assert kept.smiles == ["CC", "CO", "CN"]


@pytest.mark.parametrize("again", [("CC", "CO", "1"), ("CO", "CC", "0"), ("CN", "CO", "0.5")])
def test_saying_the_same_again_is_no_contradiction(tmp_path: Path, again: tuple[str, str, str]) -> None:
    assert len(read_preferences(write(tmp_path, [*ROWS, again])).pairs) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("CC", "CS", "2"), "line 5 of '.*' expects preferred to be 1 .* got '2'"),
        (("CC", "CS", "first"), "got 'first'"),
        (("CC", "CS", "nan"), "got 'nan'"),
        (("CC", "CS", ""), "got ''"),
        (("CC", "CC", "1"), "line 5 of '.*' expects two different molecules, got 'CC' and 'CC'"),
        (("", "CC", "1"), "expects two different molecules, got '' and 'CC'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_preferences(write(tmp_path, [*ROWS, row]))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,b,preferred\nCC,CO,1", "line 2 of '.*' expects first, second, preferred, got a, b, pref"),
        ("a.csv", "first,second,preferred\nCC", "expects two different molecules, got 'CC' and ''"),
        ("a.csv", "first,second,preferred\nCC,CO", "got 'None'"),
        ("a.csv", "first,second,preferred\n" + 200_000 * "C", r"line 2 of '.*' is no row \(field larger"),
        ("a.csv", "first,second,preferred\n", "holds no preferences; give at least one row"),
        ("a.csv", "", "holds no preferences"),
        ("a.csv", "first,second,preferred\nCC,CO,0,5", "line 2 of '.*' expects 3 values, got more; write num"),
        ("a.JSONL", "{}", "got nothing"),
        ("a.jsonl", "\n\n", "holds no preferences"),
        ("a.jsonl", '\n{"first": "CC"', "line 2 of '.*' expects a JSON object, got '{\"first\": \"CC\"'"),
        ("a.jsonl", 100_000 * "[", "line 1 of '.*' expects a JSON object"),
        ("a.jsonl", "[1]", "expects first, second, preferred, got list"),
        ("a.jsonl", "{}", "got nothing"),
        ("a.jsonl", '{"first": "CC", "second": "CO", "preferred": 1' + 400 * "0" + "}", "expects preferred to be 1"),
    ],
)  # fmt: skip
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_preferences(tmp_path / name)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="expected a table of preferences at 'none.csv', found none"):
        read_preferences(Path("none.csv"))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(mark.join(row) for row in [COLUMNS, *ROWS]))
    assert read_preferences(path).outcomes.tolist() == [1.0, 0.0, 0.5]


def test_a_line_of_json_may_hold_any_letter(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    row = {"first": "CC", "second": "CO", "preferred": 1, "note": "a\u2028b"}
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert read_preferences(path).outcomes.tolist() == [1.0]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    told = Preferences(["C,C", 'C"O', "CN"], torch.tensor([[0, 1], [2, 0], [1, 2]]), torch.tensor([1.0, 0.0, 0.5]))
    write_preferences(told, tmp_path / "new" / "folder.csv")
    found = read_preferences(tmp_path / "new" / "folder.csv")
    assert found.smiles == told.smiles
    assert torch.equal(found.pairs, told.pairs)
    assert torch.equal(found.outcomes, told.outcomes)


def test_pairs_among_some_molecules(tmp_path: Path) -> None:
    told = read_preferences(write(tmp_path, [*ROWS, ("CC", "CS", "1")]))
    found = told.among({0, 2, 3})
    assert found.pairs.tolist() == [[2, 0], [0, 3]]
    assert found.outcomes.tolist() == [0.0, 1.0]
    assert found.smiles == told.smiles
    assert told.among({1}).pairs.shape == (0, 2)
    assert told.among({1}).outcomes.shape == (0,)
