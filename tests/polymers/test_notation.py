from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem

from constrained_diffusion.polymers.notation import from_postfix, notation, to_postfix, tokenize

UNITS = [
    "[Cu]OC(C(N)=O)C[Au]",
    "CC(C)(C(F)(F)F)OC(=O)C#N",
    "C",
    "C1CC(O)CC1Cl",
    "N[C@@H](C)C(=O)O",
    "F/C=C/F",
    "C(C(C))",
]
TOKENS = ["C", "N", "O", "=", ")", "F", "[Cu]"]


@pytest.mark.parametrize("smiles", UNITS)
def test_tokens_joined_are_the_string(smiles: str) -> None:
    assert "".join(tokenize(smiles)) == smiles


@pytest.mark.parametrize("smiles", UNITS)
def test_postfix_is_the_same_molecule(smiles: str) -> None:
    assert Chem.CanonSmiles(from_postfix(to_postfix(smiles))) == Chem.CanonSmiles(smiles)
    assert "(" not in to_postfix(smiles)


def test_every_spelling_of_rdkit_survives() -> None:
    molecule = Chem.MolFromSmiles("COC(C(=O)NC(C)C#N)(C(F)(F)F)OCC(Cl)N(C)C")
    for seed in range(50):
        random.seed(seed)
        spelt = Chem.MolToSmiles(molecule, doRandom=True)
        assert Chem.CanonSmiles(from_postfix(to_postfix(spelt))) == Chem.MolToSmiles(molecule)


@settings(max_examples=300, deadline=None)
@given(some.lists(some.sampled_from(["C", ")"]), min_size=1, max_size=40).filter(lambda tokens: "C" in tokens))
def test_any_parentheses_are_a_tree(tokens: list[str]) -> None:
    """All of carbon: a tree of any shape is a graph that rdkit reads, if not a molecule of four bonds."""
    molecule = Chem.MolFromSmiles(from_postfix(tokens), sanitize=False)
    assert molecule.GetNumAtoms() == tokens.count("C")
    assert molecule.GetNumBonds() == tokens.count("C") - 1
    assert len(Chem.GetMolFrags(molecule)) == 1


@settings(max_examples=300, deadline=None)
@given(some.lists(some.sampled_from(TOKENS), max_size=40))
def test_any_tokens_are_a_string(tokens: list[str]) -> None:
    written = from_postfix(tokens)
    atoms = [token for token in tokenize(written) if token not in "()="] if written else []
    assert sorted(atoms) == sorted(token for token in tokens if token not in ")=")


@settings(max_examples=500, deadline=None)
@given(some.lists(some.sampled_from([*TOKENS, "#", "S", "[O-]", "[N+]", "[Au]"]), max_size=40))
def test_any_tokens_are_a_molecule_by_valence(tokens: list[str]) -> None:
    written = from_postfix(tokens, valences=True)
    atoms = [token for token in tokens if token not in ("=", "#", ")")]
    assert Chem.MolFromSmiles(written) is not None
    assert bool(written) == bool(atoms)
    assert "." not in written
    assert [token for token in tokenize(written or "C") if token not in "()=#"][:1] == (atoms or ["C"])[:1]


@pytest.mark.parametrize("smiles", [*UNITS, "CS(=O)(=O)C", "C[N+](C)(C)CC[O-]", "c1cc[nH]c1", "OP(=O)(O)OC#N"])
def test_a_molecule_is_the_same_by_valence(smiles: str) -> None:
    assert Chem.CanonSmiles(from_postfix(to_postfix(smiles), valences=True)) == Chem.CanonSmiles(smiles)


@pytest.mark.parametrize(
    ("tokens", "smiles"),
    [
        ("C O C )", "COC"),  # behind the last atom a bracket changes nothing
        ("C O C ) C", "CCOC"),  # the oxygen is full: the third carbon goes to the first
        ("F = O C", "FOC"),  # fluorine has one bond, and then oxygen one more
        ("F F C", "FF"),  # none is free, the rest is not read
        ("C = = C", "C=C"),  # the last bond counts
        ("C # N # N", "N#CN"),
        ("N # N C", "N#N"),
        ("C C =", "CC"),  # a bond to nothing
        ("[Cu] O ) C", "[Cu]OC"),  # the bracket would leave none with a bond
        (") ) C", "C"),
        ("= C", "C"),
        ("C 1 C C 1", "C1CC1"),
        ("F C 1 C O 1 1", "FC1CO1"),
    ],
)
def test_what_has_no_room_goes_elsewhere(tokens: str, smiles: str) -> None:
    found = from_postfix(tokens.split(), valences=True)
    assert found == smiles or Chem.CanonSmiles(found) == Chem.CanonSmiles(smiles)


def test_a_long_chain_is_written() -> None:
    assert from_postfix(["C"] * 5000) == "C" * 5000


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("CCXO", "got 'CCXO', in which 'X' is no atom or bond"),
        ("", "expected a SMILES string"),
        ("CC)O", r"where '\)' has no place"),
        ("CC.O", r"where '\.' has no place"),
        ("CC(O", "in which a parenthesis is not closed"),
    ],
)
def test_other_strings_are_refused(smiles: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_postfix(smiles)


def test_other_notations_are_refused() -> None:
    with pytest.raises(ValueError, match="notation must be one of smiles, postfix, valence, got 'inchi'"):
        notation("inchi")
