from __future__ import annotations

import pytest

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem

from constrained_diffusion.domains.polymers.repeat_units import canonical
from constrained_diffusion.domains.polymers.spelling import along_backbone

ETHER = "COCC(CNCC(CF)OC(=O)[Au])O[Cu]"


def test_all_spellings_of_a_unit_give_one() -> None:
    molecule = Chem.MolFromSmiles(ETHER)
    found = {along_backbone(Chem.MolToSmiles(molecule, doRandom=True)) for _ in range(20)}
    assert found == {along_backbone(ETHER)} == {"[Cu]OC(COC)CNCC(CF)OC(=O)[Au]"}


@pytest.mark.parametrize(
    "smiles",
    [
        ETHER,
        "[Au]C[Cu]",
        "CC(CO[Cu])(COC(=O)[Au])NC(=O)CC#N",
        "c1ccccc1C(N[Cu])C(=O)[Au]",
        "C[N+](C)(C[Cu])CC([O-])C(=O)[Au]",
        "C[Si](C)(O[Cu])O[Au]",
    ],
)
def test_it_is_the_same_unit_from_end_to_end(smiles: str) -> None:
    spelt = along_backbone(smiles)
    assert canonical(spelt) == canonical(smiles)
    assert spelt.startswith("[Cu]")
    assert spelt.endswith("[Au]")


@pytest.mark.parametrize("smiles", ["C1CC1(O[Cu])C(=O)[Au]", "C1CC(O[Cu])CC1C(=O)[Au]", "c1cc(N[Cu])ccc1C(=O)[Au]"])
def test_rings_in_the_backbone_are_kept(smiles: str) -> None:
    spelt = along_backbone(smiles)
    assert canonical(spelt) == canonical(smiles)
    assert spelt.startswith("[Cu]")


@pytest.mark.parametrize("smiles", ["[Cu]c1ccc(C(=O)[Au])cc1C", "[Cu]C1CC(C[Au])CC(F)C1"])
def test_a_ring_with_two_ways_round_is_spelt_one_way(smiles: str) -> None:
    molecule = Chem.MolFromSmiles(smiles)
    spellings = [Chem.MolToSmiles(molecule, doRandom=True) for _ in range(30)]
    assert len(set(spellings)) > 5
    assert len({along_backbone(one) for one in spellings}) == 1


@pytest.mark.parametrize("smiles", ["CCO", "[Au]CC", "CC("])
def test_other_molecules_are_refused(smiles: str) -> None:
    with pytest.raises(ValueError, match="expected a repeat unit with its ends"):
        along_backbone(smiles)
