"""The judge against numpy's own ridge regression, and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from scipy.spatial.distance import cdist

from constrained_diffusion.domains.polymers.judge import FILE, HIGH, Judge, fragment_counts, load_judge, similarity
from constrained_diffusion.runtime import assets, cards

UNITS = [f"[Cu]{'C' * n}{end}[Au]" for n in range(1, 9) for end in ("O", "N")]
VALUES = torch.linspace(-6, -3, 16, dtype=torch.float64).sin()
OTHERS = ["[Cu]CC(C)O[Au]", "[Cu]CCCCCCCCCS[Au]", "[Cu]c1ccccc1[Au]"]


def counts(smiles: list[str]) -> np.ndarray[Any, Any]:
    """Return the counts by rdkit's own dictionaries."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=3, fpSize=4096)
    rows = np.zeros((len(smiles), 4096))
    for row, string in enumerate(smiles):
        for bit, count in generator.GetCountFingerprint(Chem.MolFromSmiles(string)).GetNonzeroElements().items():
            rows[row, bit] = count
    return rows


def kernel(a: list[str], b: list[str]) -> np.ndarray[Any, Any]:
    """Return Tanimoto similarities in the form 1 / (1 + |a - b|^2 / a.b)."""
    first, second = counts(a), counts(b)
    return np.asarray(1 / (1 + cdist(first, second, "sqeuclidean") / (first @ second.T)))


def test_counts_are_rdkits() -> None:
    found = fragment_counts([*UNITS, *OTHERS])
    assert (found.shape, found.dtype) == ((19, 4096), torch.float64)
    np.testing.assert_array_equal(found.numpy(), counts([*UNITS, *OTHERS]))
    ethane = fragment_counts(["CC"])[0]
    assert sorted(ethane[ethane > 0].tolist()) == [1, 2]  # both carbons, and the whole


def test_similarity_is_rdkits_where_nothing_is_there_twice() -> None:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=3, fpSize=4096)
    theirs = [generator.GetFingerprint(Chem.MolFromSmiles(string)) for string in OTHERS]
    bits = (fragment_counts(OTHERS) > 0).double()
    expected = [DataStructs.BulkTanimotoSimilarity(one, theirs) for one in theirs]
    torch.testing.assert_close(similarity(bits, bits), torch.tensor(expected, dtype=torch.float64))


def test_similarity_is_a_kernel() -> None:
    given = fragment_counts(UNITS)
    found = similarity(given, given)
    np.testing.assert_allclose(found.numpy(), kernel(UNITS, UNITS), rtol=1e-12)
    torch.testing.assert_close(found.diagonal(), torch.ones(16, dtype=torch.float64))
    assert torch.linalg.eigvalsh(found).min() > 0


@pytest.mark.parametrize("ridge", [0.5, 0.01])
def test_predictions_are_ridge_regressions(ridge: float) -> None:
    judge = Judge.fit(UNITS, VALUES, UNITS, ridge)
    values = VALUES.numpy()
    dual = np.linalg.inv(kernel(UNITS, UNITS) + ridge * np.eye(16)) @ (values - values.mean())
    expected = kernel(OTHERS, UNITS) @ dual + values.mean()
    np.testing.assert_allclose(judge.predict(OTHERS).numpy(), expected, rtol=1e-9)
    assert judge.mean == pytest.approx(values.mean())


def test_the_ridge_leads_from_the_values_to_their_mean() -> None:
    exact, blunt = (Judge.fit(UNITS, VALUES.float(), UNITS, ridge) for ridge in (1e-9, 1e9))
    np.testing.assert_allclose(exact.predict(UNITS).numpy(), VALUES.numpy(), atol=1e-5)
    np.testing.assert_allclose(blunt.predict(UNITS).numpy(), float(VALUES.mean()), atol=1e-5)


def test_the_threshold_is_the_quantile_of_its_own_predictions() -> None:
    judge = Judge.fit(UNITS, VALUES, [*OTHERS, *UNITS[:8]])
    expected = np.quantile(judge.predict([*OTHERS, *UNITS[:8]]).numpy(), HIGH)
    assert judge.threshold == pytest.approx(expected, rel=1e-12)
    assert judge.threshold != pytest.approx(float(VALUES.quantile(HIGH)))


def test_a_prediction_depends_on_the_molecule_alone() -> None:
    judge = Judge.fit(UNITS, VALUES, UNITS)
    spellings = [Chem.MolToSmiles(Chem.MolFromSmiles(OTHERS[0]), doRandom=True) for _ in range(5)]
    predicted = judge.predict([*spellings, *(1000 * [OTHERS[1]]), OTHERS[0]])  # more than one part
    torch.testing.assert_close(predicted[:5], predicted[-1].expand(5))
    torch.testing.assert_close(predicted[5:-1], judge.predict(OTHERS)[1].expand(1000))
    assert judge.predict([]).shape == (0,)


def test_what_is_no_molecule_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected molecules, got 'CC\(' \(row 1\), which rdkit does not read"):
        Judge.fit(UNITS, VALUES, UNITS).predict(["CC", "CC("])


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    judge = Judge.fit(UNITS, VALUES, UNITS)
    judge.save(tmp_path / "new")
    again = load_judge(str(tmp_path / "new"))
    assert (again.smiles, again.mean, again.threshold) == (judge.smiles, judge.mean, judge.threshold)
    torch.testing.assert_close(again.predict(OTHERS), judge.predict(OTHERS), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1.0]}, "should hold one weight for each of its molecules; make it again"),
        ({"weights": [], "smiles": []}, "should hold one weight for each"),
        ({"weights": 5}, "should hold smiles, weights, mean, threshold, but does not .TypeError"),
        ({"weights": ["x", "y"]}, "but does not .ValueError"),
        ({"weights": [10**400, 1]}, "but does not .OverflowError"),
        ({"threshold": None}, "but does not .TypeError"),
        ({"threshold": float("nan")}, "should hold finite numbers, but has NaN or infinity"),
        ({"weights": [1.0, float("inf")]}, "should hold finite numbers"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    whole = {"smiles": ["CC", "CO"], "weights": [1.0, 2.0], "mean": 0.5, "threshold": 1.0}
    (tmp_path / FILE).write_text(json.dumps(whole))
    assert load_judge(str(tmp_path)).weights.tolist() == [1.0, 2.0]
    (tmp_path / FILE).write_text(json.dumps({**whole, **change}))
    with pytest.raises(ValueError, match=message):
        load_judge(str(tmp_path))


def test_missing_and_truncated_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a zoo name or a folder with judge.json; 'polymer_juge' is neither"):
        load_judge("polymer_juge")
    (tmp_path / FILE).write_text('{"smiles": ["CC"')
    with pytest.raises(ValueError, match="judge.json' is no valid JSON, perhaps truncated"):
        load_judge(str(tmp_path))
    (tmp_path / FILE).write_text('{"smiles": ["CC"]}')
    with pytest.raises(ValueError, match="should hold smiles, weights, mean, threshold, but does not .KeyError"):
        load_judge(str(tmp_path))


def test_the_zoos_judge_is_the_one_of_its_card() -> None:
    judge, card = load_judge("polymer_judge"), cards.read(assets.path("polymer_judge"))
    assert judge.threshold == pytest.approx(card["figures"]["threshold_log10_conductivity"], rel=1e-4)
    predicted = judge.predict(judge.smiles[:200])
    assert -8 < float(predicted.min()) < judge.mean < float(predicted.max()) < -2
