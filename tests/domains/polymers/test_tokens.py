from __future__ import annotations

import pytest

from constrained_diffusion.domains.polymers.tokens import is_bond, is_ring, tokenize

UNITS = ["[Cu]OC(=O)C[Au]", "N[C@@H](C)C(=O)O", "F/C=C/F", "C%12CC%12", "BrC#N"]


@pytest.mark.parametrize("smiles", UNITS)
def test_tokens_joined_are_the_string(smiles: str) -> None:
    assert "".join(tokenize(smiles)) == smiles


def test_tokens_are_of_one_kind() -> None:
    tokens = tokenize("[Cu]C(=O)C1#CBr%11/")
    assert [token for token in tokens if is_bond(token)] == ["=", "#", "/"]
    assert [token for token in tokens if is_ring(token)] == ["1", "%11"]


@pytest.mark.parametrize(("smiles", "message"), [("CCXO", "in which 'X' is no atom or bond"), ("", "got ''")])
def test_other_strings_are_refused(smiles: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize(smiles)
