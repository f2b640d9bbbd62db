from __future__ import annotations

import pytest
import torch

from constrained_diffusion.domains.polymers.tokens import tokenize
from constrained_diffusion.domains.polymers.vocabulary import END, Vocabulary

UNITS = ["CC(Cl)O[Cu]", "N#CC[Au]", "[Si](C)(C)Br", "C1CC1%10[nH]c"]


def test_numbers_and_strings_are_each_others_inverse() -> None:
    vocabulary = Vocabulary.of(UNITS)
    numbers = vocabulary.encode(UNITS, 16)
    assert numbers.shape == (4, 16)
    assert vocabulary.decode(numbers) == UNITS
    assert vocabulary.tokens == [END, *sorted({token for unit in UNITS for token in tokenize(unit)})]
    assert int(numbers.max()) == len(vocabulary) - 1
    assert numbers[0, 7:].eq(0).all()
    assert numbers[0, :7].gt(0).all()


def test_postfix_tokens_come_back_as_smiles() -> None:
    units = ["[Cu]OC(C(N)=O)C[Au]", "[Cu]C[Au]"]
    vocabulary = Vocabulary.of(units, "postfix")
    assert "(" not in vocabulary.tokens
    assert vocabulary.decode(vocabulary.encode(units, 14)) == units


def test_a_string_stops_at_its_first_end() -> None:
    assert Vocabulary(["C", "O"]).decode(torch.tensor([[1, 2, 0, 1], [1, 1, 1, 1], [0, 2, 2, 2]])) == ["CO", "CCCC", ""]


def test_bad_rows_and_vocabularies_are_named() -> None:
    vocabulary = Vocabulary(["C", "O"])
    with pytest.raises(ValueError, match=r"'CN' \(row 1\) has the token 'N', which is not among the 2"):
        vocabulary.encode(["CO", "CN"], 4)
    with pytest.raises(ValueError, match=r"'CCCCC' \(row 0\) has 5 tokens, more than the 4"):
        vocabulary.encode(["CCCCC"], 4)
    with pytest.raises(ValueError, match="expected each token of a vocabulary once"):
        Vocabulary(["C", "C"])
