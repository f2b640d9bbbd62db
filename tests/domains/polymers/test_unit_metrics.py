"""The six figures on sets small enough to count by hand, similarities by rdkit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Contrib.SA_Score import sascorer

from constrained_diffusion.domains.polymers.repeat_units import canonical, fingerprints
from constrained_diffusion.domains.polymers.unit_metrics import clean_samples, polymer_figures

KNOWN = ["[Au]CCO[Cu]", "[Au]CCN[Cu]"]
SAMPLES = [
    "[Cu]OCC[Au]",  # valid, but known, in another spelling
    "[Au]CCCO[Cu]",  # valid and new
    "O(CCC[Au])[Cu]",  # the same again
    "CCSCCN(CCN[Cu])CCOC(=O)[Au]",  # valid and new
    "CCO",  # no ends
    "CC(",  # unreadable
    "CC(",
    "",
]


def figures(samples: list[str]) -> dict[str, float | None]:
    return polymer_figures(samples, {str(canonical(unit)) for unit in KNOWN}, fingerprints(KNOWN))


def test_each_figure_is_counted_by_hand() -> None:
    found = figures(SAMPLES)
    assert found["validity"] == 4 / 8
    assert found["uniqueness"] == 3 / 4
    assert found["novelty"] == 2 / 3
    scores = [sascorer.calculateScore(Chem.MolFromSmiles(unit)) for unit in SAMPLES[2:4]]
    assert scores[0] > 5 > scores[1]
    assert found["synthesizability"] == 1 / 2
    clean, counts = clean_samples(SAMPLES, {str(canonical(unit)) for unit in KNOWN})
    assert counts == (8, 4, 3, 2)
    assert clean == [canonical("[Au]CCCO[Cu]"), canonical("CCSCCN(CCN[Cu])CCOC(=O)[Au]")]


def test_similarities_are_rdkits_means() -> None:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    new, known = (
        [generator.GetFingerprint(Chem.MolFromSmiles(unit)) for unit in units]
        for units in (["[Au]CCCO[Cu]", "CCSCCN(CCN[Cu])CCOC(=O)[Au]"], KNOWN)
    )
    found = figures(SAMPLES)
    pairs = torch.tensor([DataStructs.BulkTanimotoSimilarity(one, known) for one in new])
    assert found["similarity"] == pytest.approx(float(pairs.mean()))
    assert found["diversity"] == pytest.approx(1 - DataStructs.TanimotoSimilarity(*new))


def test_figures_about_nothing_are_none() -> None:
    found = figures(["CC(", "CCO"])
    assert found["validity"] == 0
    assert [value for key, value in found.items() if key != "validity"] == [None] * 5
    assert figures(["[Au]CCCO[Cu]"])["diversity"] is None
    with pytest.raises(ValueError, match="expected at least one, got none"):
        figures([])
