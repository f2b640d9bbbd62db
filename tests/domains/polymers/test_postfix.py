from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem

from constrained_diffusion.domains.polymers.postfix import from_postfix, to_postfix, write_tree
from constrained_diffusion.domains.polymers.tokens import tokenize

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


def test_a_long_chain_is_written() -> None:
    assert from_postfix(["C"] * 5000) == "C" * 5000


def test_a_tree_is_written_with_its_last_branch_open() -> None:
    assert write_tree(["C", "O", "=N", "F"], [[1, 2, 3], [], [], []]) == "C(O)(=N)F"


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
