from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem

from constrained_diffusion.domains.polymers.by_valence import from_postfix_by_valence
from constrained_diffusion.domains.polymers.postfix import to_postfix
from constrained_diffusion.domains.polymers.tokens import tokenize

TOKENS = ["C", "N", "O", "=", "#", ")", "F", "S", "1", "2", "[Cu]", "[Au]", "[O-]", "[N+]", "[P+]", "[B-]", "[H]"]
MOLECULES = [
    *("C", "[Cu]OC(C(N)=O)C[Au]", "CC(C)(C(F)(F)F)OC(=O)C#N", "C1CC(O)CC1Cl", "N[C@@H](C)C(=O)O", "F/C=C/F", "C(C(C))"),
    *("CS(=O)(=O)C", "C[N+](C)(C)CC[O-]", "OP(=O)(O)OC#N", "CO[B-](OC)(OC)OC", "F[P-](F)(F)(F)(F)F", "C[P+](C)(C)C"),
    *("c1cc[nH]c1", "O=c1ccc2ccccc2o1", "O=c1cc[nH]cc1", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", "c1ccsc1", "C[n+]1ccccc1"),
    *("C1=CCCCC1", "C1CC2CCC1CC2", "[2H]C([2H])O", "C[I+]C", "[O-]Cl", "C%10CC%10", "C1CC=1"),
]


@settings(max_examples=500, deadline=None)
@given(some.lists(some.sampled_from(TOKENS), max_size=40))
def test_any_tokens_are_a_molecule_by_valence(tokens: list[str]) -> None:
    written = from_postfix_by_valence(tokens)
    atoms = [token for token in tokens if token not in ("=", "#", ")", "1", "2")]
    assert Chem.MolFromSmiles(written) is not None
    assert bool(written) == bool(atoms)
    assert "." not in written
    assert [token for token in tokenize(written or "C") if token not in "()=#12"][:1] == (atoms or ["C"])[:1]


@pytest.mark.parametrize("smiles", MOLECULES)
def test_a_molecule_is_the_same_by_valence(smiles: str) -> None:
    assert Chem.CanonSmiles(from_postfix_by_valence(to_postfix(smiles))) == Chem.CanonSmiles(smiles)


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
        ("C 1 1", "C"),  # a ring onto its own atom
        ("C 1 C 1", "CC"),  # or onto a neighbour
        ("C 1 C C 1 1", "C1CC1"),  # a second that is never closed
        ("1 C C", "CC"),
        ("O = 1 C C C 1", "O"),  # which leaves no bond for a carbon
        ("C = 1 C C 1 C", "C=1CC1C"),
        ("C = 1 C O 1 C", "CCOC"),  # the bond is two at the other end too
        ("F C 1 C O 1 1", "FC1CO1"),
    ],
)
def test_what_has_no_room_goes_elsewhere(tokens: str, smiles: str) -> None:
    found = from_postfix_by_valence(tokens.split())
    assert found == smiles or Chem.CanonSmiles(found) == Chem.CanonSmiles(smiles)
