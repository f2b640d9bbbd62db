"""Tables of polymers: SMILES of repeat units, with a conductivity or a class; PolyGen's two files, or your own.

| file | rows | conductivity |
|---|---|---|
| PolyGen-train-set-from-HTP-MD.csv | 6,024 units | in S/cm |
| htp_md.csv, tab-separated | 11,408, 6,024 of them distinct: the high class stands there 18 times | 0 or 1 |

Both are CC0, by Yang et al. 2024 (npj Comput. Mater. 10, 296).
"""

from __future__ import annotations

import hashlib
import math
import urllib.request
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.domains.polymers.csv_rows import read_csv
from constrained_diffusion.domains.polymers.repeat_units import canonical, is_valid
from constrained_diffusion.runtime.files import write_bytes

NAME = "PolyGen-train-set-from-HTP-MD.csv"
URL = f"https://raw.githubusercontent.com/TRI-AMDD/PolyGen/ace75619494cce660aa5520bb73bff881917153a/{NAME}"
SHA256 = "d93e0644cb9ef627d407054ae5d2fe249a7bbcc60dfd95a7fee38c2e9d987707"
COLUMNS = ("mol_smiles", "conductivity")


class Table(NamedTuple):
    """Distinct repeat units, in the order of the file."""

    smiles: list[str]  #: as the file spells them first
    conductivity: Tensor  #: `(n,)`, float64, in S/cm, or 0 and 1 where the file holds classes
    skipped: int  #: rows that are no repeat unit
    repeated: int  #: rows that stand in the file once more


def read_table(path: Path, skip_invalid: bool = False) -> Table:
    """Read a table with a header, separated by commas, tabs or semicolons.

    Args:
        path: of the file; it needs the columns mol_smiles and conductivity.
        skip_invalid: leave out rows that are no repeat unit, and count them, rather than refuse the file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: no such columns, a conductivity that is no number, a row that is no repeat unit, or one that stands
            there again with another conductivity; the line is named.
        ImportError: rdkit is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a table of polymers at '{path}', found none; set the path, or download it.")
    header, rows = read_csv(path)
    if not set(COLUMNS) <= set(header):
        raise ValueError(f"'{path}' expects the columns {' and '.join(COLUMNS)}, got {', '.join(header)}.")
    found: dict[str, tuple[str, float]] = {}  # by what all spellings of a unit share
    skipped = repeated = 0
    for line, row in rows:
        smiles, where = row["mol_smiles"] or "", f"line {line} of '{path}'"
        if not is_valid(smiles):
            if not skip_invalid:
                raise ValueError(
                    f"{where} expects a repeat unit with its ends [Cu] and [Au], got '{smiles[:80]}'; mend the row, or "
                    "set skip_invalid to leave such rows out."
                )
            skipped += 1
            continue
        value = _number(row["conductivity"], where)
        _, before = found.setdefault(canonical(smiles) or smiles, (smiles, value))
        if before != value:
            raise ValueError(f"{where} says {value:g} of '{smiles}', but an earlier line says {before:g}.")
        repeated += 1
    units, values = [unit for unit, _ in found.values()], [value for _, value in found.values()]
    return Table(units, torch.tensor(values, dtype=torch.float64), skipped, repeated - len(found))


def fetch(folder: Path, url: str = URL, sha256: str = SHA256) -> Path:
    """Return the path of PolyGen's table below `folder`, downloaded where it is not there.

    Raises:
        FileNotFoundError: it cannot be had.
        ValueError: what came has another checksum; nothing is written.
    """
    path = folder / url.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
    except OSError as error:
        raise FileNotFoundError(
            f"the table of polymers was not at '{path}' and could not be had from {url} ({error}); put it there."
        ) from error
    if (got := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{url} expects the SHA-256 {sha256}, got {got}; it was changed, or cut on the way.")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    return path


def high_threshold(conductivity: Tensor, share: float = 320 / 6024) -> float:
    """Return the conductivity from which on a unit belongs to the high class: the upper 5.3 %, as in PolyGen.

    Of a table of classes, 0 and 1, it is 1.
    """
    if set(conductivity.tolist()) <= {0.0, 1.0}:
        return 1.0
    return float(conductivity.quantile(1 - share))


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} expects a conductivity, got '{text}'.")
    return value
