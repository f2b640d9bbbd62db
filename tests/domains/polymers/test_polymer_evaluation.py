"""`PolymerEvaluation` on strings whose every figure is counted by hand, by rdkit and by scipy."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Contrib.SA_Score import sascorer
from scipy import stats

from constrained_diffusion.domains.images.pixels import Brightness
from constrained_diffusion.domains.polymers.coding import coding
from constrained_diffusion.domains.polymers.judge import Judge
from constrained_diffusion.domains.polymers.merit import BradleyTerryMerit
from constrained_diffusion.domains.polymers.polymer_evaluation import PolymerEvaluation, distribution
from constrained_diffusion.domains.polymers.preferences.model import MeritCNN
from constrained_diffusion.domains.polymers.reference import Reference
from constrained_diffusion.domains.polymers.vocabulary import Vocabulary
from constrained_diffusion.objectives import Constraint, RewardAtLeast
from constrained_diffusion.reports.table import before_after_table
from constrained_diffusion.runtime.distribution import install_hint

TOKENS = ["(", ")", "=", "C", "N", "O", "S", "[Au]", "[Cu]"]
UNITS = [f"[Cu]{'C' * n}O[Au]" for n in range(1, 13)]
CONDUCTIVITY = torch.linspace(-6, -4, 12)  # log10, rising with the length
EASY = "CCSCCN(CCN[Cu])CCOC(=O)[Au]"
SAMPLES = [
    UNITS[11],  # known
    "[Cu]CCN[Au]",  # new
    "[Au]NCC[Cu]",  # the same again
    EASY,  # new, the only new one of a low SA score
    "CCO",  # no ends
    "[Cu]C",  # one end
    "[Cu]CC[Cu][Au]",  # an end inside
]
LENGTH = 32


class Long(Constraint):
    """Few END tokens, a constraint without a reward."""

    def forward(self, clean: Tensor) -> Tensor:
        return clean[:, 0].mean(1) - 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference and a judge, whose high class has the first of the samples alone."""
    path = tmp_path_factory.mktemp("polymers")
    Reference(Vocabulary(TOKENS), UNITS).save(path)
    judge = Judge.fit(UNITS, CONDUCTIVITY, UNITS)
    long, short, _, other = judge.predict(SAMPLES[:4]).tolist()
    assert long - 0.1 > other > short
    judge._replace(threshold=(long + other) / 2).save(path)
    return path


def evaluation(folder: Path, judged: bool = True, **settings: Any) -> PolymerEvaluation:
    return PolymerEvaluation(str(folder), str(folder) if judged else None, **settings)


def samples(strings: list[str] = SAMPLES, name: str = "one_hot") -> Tensor:
    vocabulary = Vocabulary(TOKENS)
    return coding(name, len(vocabulary)).encode(vocabulary.encode(strings, LENGTH))


def merit(tokens: list[str] = TOKENS, notation: str = "smiles") -> RewardAtLeast:
    torch.manual_seed(0)
    return RewardAtLeast(BradleyTerryMerit(MeritCNN(tokens, notation, width=4, depth=1, kernel=3)), threshold=0.0)


def interval(hits: int, n: int) -> Any:
    """Return the Clopper-Pearson interval, by scipy."""
    found = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
    return pytest.approx([found.low, found.high], abs=1e-9)


@pytest.mark.parametrize("name", ["one_hot", "analog_bits", "ordinal"])
def test_the_figures_of_known_strings(folder: Path, name: str) -> None:
    measured = evaluation(folder, coding=name)
    for part in samples(name=name).split(3):
        measured.update(part + 0.05)
    result = measured.compute()
    metrics = result["metrics"]
    assert (metrics["validity_rate"], metrics["validity_rate_95"]) == (4 / 7, interval(4, 7))
    assert (metrics["uniqueness_rate"], metrics["uniqueness_rate_95"]) == (3 / 4, interval(3, 4))
    assert (metrics["novelty_rate"], metrics["novelty_rate_95"]) == (2 / 3, interval(2, 3))
    new = [Chem.MolFromSmiles(SAMPLES[1]), Chem.MolFromSmiles(EASY)]
    assert [sascorer.calculateScore(molecule) < 5 for molecule in new] == [False, True]
    assert (metrics["synthesizability_rate"], metrics["synthesizability_rate_95"]) == (1 / 2, interval(1, 2))
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    bits = [generator.GetFingerprint(molecule) for molecule in new]
    known = [generator.GetFingerprint(Chem.MolFromSmiles(unit)) for unit in UNITS]
    similar = [DataStructs.BulkTanimotoSimilarity(one, known) for one in bits]
    assert metrics["similarity"] == pytest.approx(np.mean(similar))
    assert metrics["diversity"] == pytest.approx(1 - DataStructs.TanimotoSimilarity(*bits))


def test_the_judge_sees_valid_samples_and_decides_about_all(folder: Path) -> None:
    measured = evaluation(folder)
    assert measured.judge is not None
    measured.update(samples())
    result = measured.compute()
    predicted = measured.judge.predict(SAMPLES[:4]).numpy()
    assert (result["violation_rate"], result["n"]) == (pytest.approx(6 / 7), 7)
    assert result["violation_upper_95"] == pytest.approx(stats.beta.ppf(0.95, 7, 1), abs=1e-9)
    metrics = result["metrics"]
    assert (metrics["judge_high_rate"], metrics["judge_high_rate_95"]) == (1 / 7, interval(1, 7))
    assert metrics["judge_mean"] == pytest.approx(predicted.mean())
    assert metrics["judge_sd"] == pytest.approx(predicted.std())
    assert not any(name.startswith("reward") for name in metrics)
    assert json.loads(json.dumps(result)) == result
    table = before_after_table({"before": result, "after": result})
    assert "validity rate" in table
    assert "57.1 % (18.4 % to 90.2 %)" in table


def test_without_a_judge_a_violation_is_no_repeat_unit(folder: Path) -> None:
    measured = evaluation(folder, judged=False)
    measured.update(samples())
    result = measured.compute()
    assert result["violation_rate"] == pytest.approx(3 / 7)
    assert not any(name.startswith("judge") for name in result["metrics"])
    assert measured.marks(samples()) == 4 * [""] + 3 * ["invalid"]


def test_marks_agree_with_the_rate(folder: Path) -> None:
    measured = evaluation(folder)
    marks = measured.marks(samples())
    assert marks == ["", *3 * ["violation"], *3 * ["invalid"]]
    measured.update(samples())
    assert measured.compute()["violation_rate"] == pytest.approx(sum(mark != "" for mark in marks) / 7)
    assert measured.marks(samples(SAMPLES[4:])) == ["invalid"] * 3
    assert measured.marks(samples()[:0]) == []


def test_nothing_valid_leaves_figures_out(folder: Path) -> None:
    measured = evaluation(folder)
    measured.update(samples(SAMPLES[4:]))
    result = measured.compute()
    assert (result["violation_rate"], result["violation_upper_95"]) == (1, 1)
    assert (result["metrics"]["validity_rate"], result["metrics"]["judge_high_rate"]) == (0, 0)
    unmeasured = ("uniqueness_rate", "uniqueness_rate_95", "novelty_rate", "similarity", "diversity", "judge_mean")
    assert [result["metrics"].get(name) for name in unmeasured] == [None] * 6


def test_the_reward_of_the_first_constraint_that_has_one(folder: Path) -> None:
    measured, constraint = evaluation(folder), merit()
    measured.update(samples())
    measured.bind([Long(), constraint, merit()])  # and forgets what it had
    measured.update(samples()[:5])
    measured.update(samples()[5:])
    result = measured.compute()
    assert result["n"] == 7
    with torch.no_grad():
        expected = -constraint(samples()).double().numpy()
    assert expected.std() > 1e-3
    assert result["metrics"]["reward_mean"] == pytest.approx(expected.mean(), rel=1e-5)
    assert result["metrics"]["reward_sd"] == pytest.approx(expected.std(), rel=1e-4)
    measured.bind([Long()])
    measured.update(samples())
    assert "reward_mean" not in measured.compute()["metrics"]


def test_a_reward_of_another_language_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"reads smiles with the tokens \[Cu\] \[Au\] S O N C = \) \(, but the gen"):
        evaluation(folder).bind([merit(TOKENS[::-1])])
    with pytest.raises(ValueError, match="reads postfix with .* writes smiles with .*; train it with these"):
        evaluation(folder).bind([merit(notation="postfix")])


def test_a_reward_is_of_the_tokens_that_a_sample_is_read_as(folder: Path) -> None:
    measured = evaluation(folder)
    measured.bind([RewardAtLeast(Brightness(), 0.0)])  # the mean over one-hot channels is 1 / V
    measured.update(0.6 * samples())
    metrics = measured.compute()["metrics"]
    assert (metrics["reward_mean"], metrics["reward_sd"]) == pytest.approx((1 / (len(TOKENS) + 1), 0.0), abs=1e-6)


def test_valences_that_were_mended_are_counted(tmp_path: Path) -> None:
    """The second has three bonds on its oxygen: read by valence a unit, as written none."""
    vocabulary = Vocabulary([token for token in TOKENS if token != "("], "valence")
    Reference(vocabulary, UNITS).save(tmp_path)
    measured = evaluation(tmp_path, judged=False)
    numbers = vocabulary.encode(["[Cu]CCO[Au]", "[Cu]CO(C)C[Au]", "C"], LENGTH)
    measured.update(coding("one_hot", len(vocabulary)).encode(numbers))
    metrics = measured.compute()["metrics"]
    assert (metrics["validity_rate"], metrics["as_written_rate"]) == (2 / 3, 1 / 3)


def test_a_reward_is_asked_of_molecules_too(folder: Path) -> None:
    """Spelt along the backbone, the first and the second are one unit; what is invalid is left out."""
    measured, constraint = evaluation(folder), merit()
    measured.bind([constraint])
    assert not any(name.startswith("as_written") for name in measured_metrics(measured, SAMPLES))
    metrics = measured_metrics(measured, SAMPLES[1:3])
    with torch.no_grad():
        expected = -constraint(samples(["[Cu]CCN[Au]", "[Cu]CCN[Au]"])).double().mean()
    assert metrics["respelt_reward_mean"] == pytest.approx(float(expected), rel=1e-5)
    assert metrics["reward_mean"] != pytest.approx(float(expected), rel=1e-5)
    assert "respelt_reward_mean" not in measured_metrics(measured, SAMPLES[4:])


def measured_metrics(measured: PolymerEvaluation, strings: list[str]) -> dict[str, Any]:
    measured.reset()
    measured.update(samples(strings))
    found: dict[str, Any] = measured.compute()["metrics"]
    return found


def test_samples_of_another_shape_are_refused(folder: Path) -> None:
    for clean in (samples()[:, :5], samples(name="ordinal"), samples()[0]):
        with pytest.raises(ValueError, match=r"expects samples \(B, 10, L\), .* got the shape"):
            evaluation(folder).update(clean)


def test_every_sample_has_a_picture(folder: Path) -> None:
    measured, broken = evaluation(folder, judged=False), samples().clone()
    broken[0, 0, 3] = torch.nan
    for given in (samples(), broken):
        pictures = measured.pictures(given)
        assert pictures.shape == (7, 3, 160, 160)
        assert bool((pictures < 1).flatten(1).any(1).all())
    assert torch.equal(pictures, measured.pictures(samples()))  # NaN is no token's
    assert measured.marks(broken) == measured.marks(samples())


def test_distributions_are_numpys_histograms(folder: Path) -> None:
    values = 2 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = distribution(values, 0.25)
    edges = [x - 0.125 for x in found["x"]] + [found["x"][-1] + 0.125]
    expected, _ = np.histogram(values.numpy(), edges)
    np.testing.assert_allclose(found["share"], expected / 500)
    far = distribution(torch.tensor([0.0, 1e6]), 0.25)
    assert 100 <= len(far["x"]) <= 202
    assert far["share"][0] == far["share"][-1] == 0.5
    assert sum(found["share"]) == pytest.approx(1)
    assert found["share"][0] > 0 < found["share"][-1]
    measured = evaluation(folder)
    measured.bind([merit()])
    measured.update(samples())
    metrics = measured.compute()["metrics"]
    for name, of, width in (("reward", 7, 0.25), ("judge", 4, 0.05)):
        x, share = np.array(metrics[f"{name}_distribution"]["x"]), np.array(metrics[f"{name}_distribution"]["share"])
        np.testing.assert_allclose(share * of, (share * of).round(), atol=1e-9)
        assert abs((x * share).sum() - metrics[f"{name}_mean"]) <= width / 2


def test_reset_and_copies(folder: Path) -> None:
    measured = evaluation(folder)
    measured.update(samples())
    other = copy.deepcopy(measured)
    other.update(samples())
    assert (measured.compute()["n"], other.compute()["n"]) == (7, 14)
    measured.reset()
    measured.update(samples()[:1])
    assert (measured.compute()["n"], other.compute()["n"]) == (1, 14)
    assert not measured.state_dict()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_samples_of_a_diverged_model_are_refused(folder: Path, broken: float) -> None:
    with pytest.raises(ValueError, match="finite samples, got NaN or infinity; the model has diverged"):
        evaluation(folder).update(torch.full((1, len(TOKENS) + 1, LENGTH), broken))


def test_errors(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = evaluation(folder)
    nothing.update(samples()[:0])
    with pytest.raises(ValueError, match="expected at least one, got none"):
        nothing.compute()
    with pytest.raises(ValueError, match="coding must be one of one_hot, analog_bits, ordinal, got 'bits'"):
        evaluation(folder, coding="bits")
    with pytest.raises(FileNotFoundError, match="has no vocabulary.json and no units.txt"):
        evaluation(tmp_path)
    with pytest.raises(FileNotFoundError, match="a judge of polymers is a zoo name or a folder"):
        PolymerEvaluation(str(folder), str(tmp_path))
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("polymer"))):
        evaluation(folder)
