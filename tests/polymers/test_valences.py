from __future__ import annotations

import pytest

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem

from constrained_diffusion.polymers.valences import UNKNOWN, room

ATOMS = ["B", "C", "N", "O", "F", "Cl", "Br", "I", "P", "S", "[Si]", "[N+]", "[O-]", "[NH+]", "[PH]", "[CH2]", "[C-]"]


def _accepted(atom: str, bonds: int) -> bool:
    return Chem.MolFromSmiles(atom + "".join("(C)" for _ in range(bonds))) is not None


@pytest.mark.parametrize("atom", ATOMS)
def test_rdkit_accepts_as_many_bonds(atom: str) -> None:
    assert _accepted(atom, room(atom))


@pytest.mark.parametrize("atom", [atom for atom in ATOMS if atom not in ("P", "[PH]", "[Si]", "I")])
def test_rdkit_accepts_no_more_of_the_common_ones(atom: str) -> None:
    """Phosphorus, silicon and iodine it allows more, which no chemist of polymers writes."""
    assert not _accepted(atom, room(atom) + 1)


@pytest.mark.parametrize(
    ("token", "bonds"),
    [("c", 3), ("n", 3), ("o", 2), ("[nH]", 2), ("[13CH3]", 1), ("[C@@H]", 3), ("[S+]", 7), ("[O-2]", 0), ("[OH3]", 0)],
)
def test_brackets_are_read(token: str, bonds: int) -> None:
    assert room(token) == bonds


def test_ends_have_one_bond_and_strangers_many() -> None:
    assert [room(token) for token in ("[Cu]", "[Au]", "[Xe]", "*")] == [1, 1, UNKNOWN, UNKNOWN]
