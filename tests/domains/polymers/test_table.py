from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from constrained_diffusion.domains.polymers.table import NAME, SHA256, fetch, high_threshold, read_table

HEADER = ",sample_id,mol_smiles,conductivity\n"
REAL = Path(os.environ.get("CONSTRAINED_DIFFUSION_DATA", "data"), "polymers")


def write(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "table.csv"
    path.write_text(header + "\n".join(rows) + "\n")
    return path


def test_rows_are_read_once_each(tmp_path: Path) -> None:
    path = write(tmp_path, "5,1,[Au]CCO[Cu],1e-5", "6,2,[Au]CCN[Cu],2e-5", "7,3,[Au]CCO[Cu],1e-5")
    found = read_table(path)
    assert found.smiles == ["[Au]CCO[Cu]", "[Au]CCN[Cu]"]
    assert found.conductivity.tolist() == [1e-5, 2e-5]
    assert (found.skipped, found.repeated) == (0, 1)
    tabs = write(tmp_path, "[Au]CCO[Cu]\t1", header="mol_smiles\tconductivity\n")
    assert read_table(tabs).conductivity.tolist() == [1.0]


def test_two_spellings_are_one_unit(tmp_path: Path) -> None:
    found = read_table(write(tmp_path, "5,1,[Au]CCO[Cu],1e-5", "6,2,[Cu]OCC[Au],1e-5"))
    assert (found.smiles, found.repeated) == (["[Au]CCO[Cu]"], 1)
    with pytest.raises(ValueError, match=r"line 3 of '.*' says 2 of '\[Cu\]OCC\[Au\]', but an earlier line says 1"):
        read_table(write(tmp_path, "5,1,[Au]CCO[Cu],1", "6,2,[Cu]OCC[Au],2"))


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("mol_smiles,conductivity\n[Au]CCO[Cu],1\n", encoding="utf-8-sig")
    assert read_table(path).smiles == ["[Au]CCO[Cu]"]


def test_a_table_of_classes_has_its_ones_in_the_high_class() -> None:
    assert high_threshold(torch.tensor([0.0] * 70 + [1.0] * 2)) == 1.0
    assert high_threshold(torch.tensor([0.0, 2.0])) not in (0.0, 1.0)


def test_a_decimal_comma_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2 of .* expects 4 values, got more; write numbers with a point"):
        read_table(write(tmp_path, "5,1,[Au]CCO[Cu],1,5e-5"))


def test_what_is_no_table_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, f"5,1,{'C' * 200_000},1")
    with pytest.raises(ValueError, match=r"line 2 of .* is no row \(field larger than"):
        read_table(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["5,1,[Au]CCO[Cu],1e-5", "6,2,CC(,1"], r"line 3 of '.*' expects a repeat unit .* got 'CC\('"),
        (["5,1,[Au]CCO[Cu],much"], "line 2 of '.*' expects a conductivity, got 'much'"),
        (["5,1,[Au]CCO[Cu],nan"], "expects a conductivity, got 'nan'"),
        (["5,1,[Au]CCO[Cu],1", "5,1,[Au]CCO[Cu],2"], "line 3 of '.*' says 2 of .* but an earlier line says 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, *rows))


def test_bad_rows_are_left_out_and_counted_if_asked(tmp_path: Path) -> None:
    found = read_table(write(tmp_path, "5,1,[Au]CCO[Cu],1", "6,2,CC(,1", "7,3,,1"), skip_invalid=True)
    assert (found.smiles, found.skipped) == (["[Au]CCO[Cu]"], 2)


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a table of polymers at .* found none"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="expects the columns mol_smiles and conductivity, got a, b"):
        read_table(write(tmp_path, "1,2", header="a,b\n"))


def test_a_download_is_checked_before_it_is_kept(tmp_path: Path) -> None:
    source = write(tmp_path, "5,1,[Au]CCO[Cu],1")
    url, folder = source.as_uri(), tmp_path / "data"
    with pytest.raises(ValueError, match=f"expects the SHA-256 {SHA256}, got"):
        fetch(folder, url)
    assert not folder.exists()
    path = fetch(folder, url, hashlib.sha256(source.read_bytes()).hexdigest())
    assert path.read_bytes() == source.read_bytes()
    source.unlink()
    assert fetch(folder, url) == path
    with pytest.raises(FileNotFoundError, match="could not be had from"):
        fetch(tmp_path / "other", url)


@pytest.mark.skipif(not (REAL / NAME).is_file(), reason="the real data is not here (CONSTRAINED_DIFFUSION_DATA)")
def test_polygens_tables_hold_what_was_measured_of_them() -> None:
    assert hashlib.sha256((REAL / NAME).read_bytes()).hexdigest() == SHA256
    table = read_table(REAL / NAME)
    assert (len(table.smiles), table.skipped, table.repeated) == (6024, 0, 0)
    assert int((table.conductivity >= high_threshold(table.conductivity)).sum()) == 320
    classes = read_table(REAL / "htp_md.csv")
    assert (len(classes.smiles), classes.repeated) == (6024, 11_408 - 6024)
    assert int(classes.conductivity.sum()) == 320
    high = dict(zip(classes.smiles, classes.conductivity.tolist(), strict=True))
    ours = table.conductivity >= high_threshold(table.conductivity)
    assert torch.equal(ours, torch.tensor([high[smiles] == 1 for smiles in table.smiles]))
