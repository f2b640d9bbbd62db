from __future__ import annotations

import pytest
import torch

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from constrained_diffusion.domains.polymers.repeat_units import (
    canonical,
    fingerprints,
    is_valid,
    read,
    sa_score,
    tanimoto,
)

ETHER = "COCC(CNCC(CF)OC(=O)[Au])O[Cu]"


@pytest.mark.parametrize(
    ("smiles", "valid"),
    [
        (ETHER, True),
        ("[Au]CC[Cu]", True),
        ("CCO", False),  # no ends
        ("[Au]CC", False),  # one end
        ("[Au]CC([Cu])[Cu]", False),  # one end twice
        ("[Au]=CC[Cu]", False),  # by a double bond
        ("C[Au]CC[Cu]", False),  # of degree two
        ("[Au]C.[Cu]C", False),  # two pieces
        ("CC(", False),  # unreadable
        ("[Cu+]CO[Au]", False),  # a charged end
        ("[Cu]C(*)O[Au]", False),  # an atom of no element
        ("C(C)(C)(C)(C)[Au]", False),  # five bonds on a carbon
        ("[Cu]O(CC)CC[Au]", False),  # three on an oxygen, which rdkit takes for a dative one to a metal
        ("", False),
    ],
)
def test_a_repeat_unit_is_readable_with_two_ends(smiles: str, valid: bool) -> None:
    assert is_valid(smiles) is valid


def test_spellings_of_one_unit_agree() -> None:
    molecule = Chem.MolFromSmiles(ETHER)
    for seed in range(5):
        other = Chem.MolToSmiles(molecule, doRandom=True) if seed else ETHER
        assert canonical(other) == Chem.MolToSmiles(molecule)
    assert canonical("CC(") is None
    assert read("CC(") is None


def test_synthesizability_ranks_as_published() -> None:
    # Ertl and Schuffenhauer: simple chains are easy, crowded stereocentres are hard
    hard = "C[C@@]12C[C@H](O)[C@@H]3[C@@]4(C)CCC(=O)C=C4CC[C@H]3[C@@]1(O)CC[C@]2(C)C#CC"
    assert 1 <= sa_score("CCO") < 2.5 < sa_score(hard) <= 10
    with pytest.raises(ValueError, match=r"expected a molecule, got 'CC\('"):
        sa_score("CC(")


def test_similarities_are_rdkits() -> None:
    units = [ETHER, "[Au]CC[Cu]", "CCC(COC(=O)[Au])C(=O)NCCO[Cu]"]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    theirs = [generator.GetFingerprint(Chem.MolFromSmiles(unit)) for unit in units]
    ours = tanimoto(fingerprints(units), fingerprints(units))
    expected = [DataStructs.BulkTanimotoSimilarity(one, theirs) for one in theirs]
    assert torch.allclose(ours, torch.tensor(expected, dtype=torch.float32))
    assert float(tanimoto(torch.zeros(1, 8), torch.zeros(1, 8))) == 0
    assert fingerprints([]).shape == (0, 2048)
    with pytest.raises(ValueError, match=r"expected molecules, got 'X' \(row 1\)"):
        fingerprints([ETHER, "X"])
