from __future__ import annotations

import pytest

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem

from constrained_diffusion.domains.polymers.valences import UNKNOWN, room

ATOMS = [
    *("B", "C", "N", "O", "F", "Cl", "Br", "I", "P", "S", "[Si]", "[Ge]", "[Al]", "[H]", "[2H]", "[NH+]", "[PH]"),
    *("[N+]", "[O-]", "[C-]", "[C+]", "[B-]", "[P+]", "[P-]", "[S+]", "[S+2]", "[Si-]", "[N-]", "[O+]", "[I+]"),
    *("[Cl+]", "[CH2]", "[C:1]", "[N++]"),
]


def _accepted(atom: str, bonds: int) -> bool:
    return Chem.MolFromSmiles(atom + "".join("(C)" for _ in range(bonds))) is not None


@pytest.mark.parametrize("atom", ATOMS)
def test_rdkit_accepts_as_many_bonds(atom: str) -> None:
    assert _accepted(atom, room(atom))


@pytest.mark.parametrize("atom", ATOMS)
def test_rdkit_accepts_no_more(atom: str) -> None:
    assert not _accepted(atom, room(atom) + 1)


@pytest.mark.parametrize(
    ("token", "bonds"),
    [("c", 4), ("n", 3), ("o", 2), ("[nH]", 2), ("[13CH3]", 1), ("[C@@H]", 3), ("[O-2]", 0), ("[OH3]", 0)],
)
def test_brackets_are_read(token: str, bonds: int) -> None:
    assert room(token) == bonds


def test_ends_have_one_bond_and_strangers_many() -> None:
    assert [room(token) for token in ("[Cu]", "[Au]", "[Xe]", "*")] == [1, 1, UNKNOWN, UNKNOWN]
