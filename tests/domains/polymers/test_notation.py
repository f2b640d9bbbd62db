from __future__ import annotations

import pytest

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem

from constrained_diffusion.domains.polymers.notation import NOTATIONS, notation

UNIT = "[Cu]OC(C(N)=O)C[Au]"


@pytest.mark.parametrize("name", NOTATIONS)
def test_what_is_read_is_written(name: str) -> None:
    found = notation(name)
    assert Chem.CanonSmiles(found.write(found.read(UNIT))) == Chem.CanonSmiles(UNIT)


def test_two_notations_have_the_same_tokens() -> None:
    assert notation("valence").read(UNIT) == notation("postfix").read(UNIT) != notation("smiles").read(UNIT)


def test_other_notations_are_refused() -> None:
    with pytest.raises(ValueError, match="notation must be one of smiles, postfix, valence, got 'inchi'"):
        notation("inchi")
