"""`ClassEvaluation` with a judge whose every answer is known, on one process and on two."""

import copy
import json
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from constrained_diffusion.domains.images.class_evaluation import ClassEvaluation, as_stored
from constrained_diffusion.domains.images.class_probability import ClassProbability
from constrained_diffusion.domains.images.features import ReferenceFeatures, kernel_distance
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime import assets


class Painted(nn.Module):
    """Reads the class from the first pixel (class / 10) and how sure to be of it from the second.

    The probability of that class is what the second pixel says, the other three share the rest.
    """

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)  # would spoil every figure outside eval mode

    def forward(self, images: Tensor) -> Tensor:
        shown = nn.functional.one_hot((images[:, 0, 0, 0] * 10).round().long(), 4)
        sure = images[:, 0, 0, 1, None] * self.scale
        return self.dropout((shown * sure + (1 - shown) * (1 - sure) / 3).log())


class PaintedWithFeatures(Painted):
    def features(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1) * self.scale
        return self.dropout(pixels @ torch.eye(pixels.shape[1]))  # exact, but not in the half precision of autocast


class Dark(Constraint):
    """A constraint that is not about classes, whatever it calls its parts."""

    label = 2

    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).sum(1)


class Forbid(ClassProbability):
    def __init__(self, label: int) -> None:
        Constraint.__init__(self)
        self.label = label


def paint(shown: list[tuple[int, float]]) -> Tensor:
    """Images `(B, 1, 2, 2)` of the given classes and probabilities, the rest of the pixels random."""
    images = torch.rand(len(shown), 1, 2, 2, generator=torch.Generator().manual_seed(len(shown)))
    for image, (digit, sure) in zip(images, shown, strict=True):
        image[0, 0, 0], image[0, 0, 1] = digit / 10, sure
    return images


SHOWN = [(0, 0.99), (1, 0.4), (1, 0.95), (2, 0.6), (2, 0.45), (2, 0.97), (3, 0.92), (3, 0.91)]


@pytest.fixture
def reference(tmp_path: Path) -> str:
    images = as_stored(torch.rand(200, 1, 2, 2, generator=torch.Generator().manual_seed(5)))
    path = tmp_path / "mine.safetensors"
    judge = PaintedWithFeatures().eval()
    ReferenceFeatures.measure(judge.features, [(images, torch.arange(200) % 4)], 4, keep=50).save(path)
    return str(path)


def test_the_figures_of_a_known_batch() -> None:
    evaluation = ClassEvaluation(Painted(), label=2)
    evaluation.update(paint(SHOWN[:5]))
    evaluation.update(paint(SHOWN[5:]))
    result = evaluation.compute()
    assert (result["violation_rate"], result["n"]) == (3 / 8, 8)
    assert result["violation_upper_95"] == pytest.approx(stats.beta.ppf(0.95, 4, 5), abs=1e-9)
    metrics = {
        "class_histogram": [1, 2, 3, 2],
        "non_digit_rate": 2 / 8,
        "confident_rate": 5 / 8,
        "fid": None,
        "kid": None,
    }
    assert result["metrics"] == metrics
    assert json.loads(json.dumps(result)) == result
    evaluation.reset()
    evaluation.update(paint(SHOWN[:1]))
    assert evaluation.compute()["n"] == 1


def test_marks() -> None:
    evaluation = ClassEvaluation(Painted(), label=2)
    assert evaluation.marks(paint(SHOWN)) == ["", "invalid", "", *["violation"] * 3, "", ""]
    stricter = ClassEvaluation(Painted(), label=0, confidence=0.93)
    expected = ["violation", "invalid", "", "invalid", "invalid", "", "invalid", "invalid"]
    assert stricter.marks(paint(SHOWN)) == expected
    broken = paint(SHOWN[3:5])
    broken[0, 0, 1, 1] = float("nan")
    assert evaluation.marks(broken) == ["invalid", "violation"]


def test_the_label_comes_from_the_first_constraint_that_has_one() -> None:
    evaluation = ClassEvaluation(Painted())
    evaluation.bind([Dark(), Forbid(3), Forbid(1)])
    evaluation.update(paint(SHOWN))
    assert evaluation.compute()["violation_rate"] == 2 / 8
    evaluation.bind([Forbid(1)])  # another fit: nothing of the first one is left
    assert evaluation.label == 1
    evaluation.update(paint(SHOWN[:3]))
    assert (evaluation.compute()["violation_rate"], evaluation.compute()["n"]) == (2 / 3, 3)


def test_a_label_that_was_given_stays() -> None:
    evaluation = ClassEvaluation(Painted(), label=0)
    evaluation.bind([Forbid(3)])
    assert evaluation.label == 0


@pytest.mark.parametrize("constraints", [[], [Dark()]])
def test_without_a_label_there_is_no_violation(constraints: list[Constraint]) -> None:
    evaluation = ClassEvaluation(Painted())
    evaluation.bind(constraints)
    assert (evaluation.subject, evaluation.figures[1].label) == ("violations", "total variation of the classes")
    evaluation.update(paint(SHOWN))
    result = evaluation.compute()
    assert (result["violation_rate"], result["violation_upper_95"], result["n"]) == (None, None, 8)
    assert "violation" not in evaluation.marks(paint(SHOWN))


@pytest.mark.parametrize(
    ("label", "classes", "word", "others"),
    [
        *[(0, 10, "zeros", "other nine"), (6, 10, "sixes", "other nine"), (12, 20, "class 12", "other 19 classes")],
        *[(4, 100, "class 4", "other 99 classes"), (1, 4, "class 1", "other three")],
    ],
)
def test_the_label_and_the_others_have_names(label: int, classes: int, word: str, others: str) -> None:
    judge = nn.Linear(2, classes)
    judge.num_classes = classes  # type: ignore[assignment]
    evaluation = ClassEvaluation(judge, label=label)
    assert evaluation.subject == word
    assert evaluation.figures[0].marked == label
    assert evaluation.figures[1].label == f"total variation of the {others}"


def test_fid_and_kid_leave_the_label_out(reference: str) -> None:
    samples = torch.rand(60, 1, 2, 2, generator=torch.Generator().manual_seed(3)) * 0.3
    evaluation = ClassEvaluation(PaintedWithFeatures(), reference)
    evaluation.bind([Forbid(1)])
    evaluation.train()
    for rows in samples.split(25):
        evaluation.update(rows)
    metrics = evaluation.compute()["metrics"]
    real = ReferenceFeatures.from_file(reference).features[[0, 2, 3]].flatten(0, 1)
    assert metrics["kid"] == pytest.approx(kernel_distance(as_stored(samples).flatten(1), real), abs=1e-9)
    other = ClassEvaluation(PaintedWithFeatures(), reference, label=0)
    other.update(samples)
    assert metrics["fid"] != pytest.approx(other.compute()["metrics"]["fid"], rel=1e-4)


def test_the_reference_itself_is_at_distance_zero(reference: str) -> None:
    images = torch.rand(200, 1, 2, 2, generator=torch.Generator().manual_seed(5)).clamp(max=0.34)
    path = Path(reference)
    stored = as_stored(images)
    ReferenceFeatures.measure(lambda x: x.flatten(1), [(stored, torch.arange(200) % 4)], 4, keep=50).save(path)
    evaluation = ClassEvaluation(PaintedWithFeatures(), reference, label=3)
    evaluation.update(images[torch.arange(200) % 4 != 3])
    assert evaluation.compute()["metrics"]["fid"] == pytest.approx(0, abs=1e-6)


def test_another_feature_extractor(reference: str) -> None:
    samples = paint([(0, 0.9)] * 10)
    own = ClassEvaluation(PaintedWithFeatures(), reference)
    other = ClassEvaluation(Painted(), reference, feature_extractor=nn.Sequential(nn.Flatten(), nn.Dropout(0.5)))
    other.train()
    for evaluation in (own, other):
        evaluation.update(samples)
    assert other.compute()["metrics"] == own.compute()["metrics"]


def test_a_judge_without_features_has_no_fid(reference: str) -> None:
    evaluation = ClassEvaluation(Painted(), reference, label=2)
    evaluation.update(paint(SHOWN))
    metrics = evaluation.compute()["metrics"]
    assert (metrics["fid"], metrics["kid"]) == (None, None)


def test_a_zoo_name_finds_its_reference(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "zoo" / "tiny_judge"
    folder.mkdir(parents=True)
    (folder / "CARD.md").write_text("a card")
    (folder / "reference.safetensors").write_bytes(Path(reference).read_bytes())
    monkeypatch.setattr(assets, "FOLDER", tmp_path / "zoo")
    assert ClassEvaluation(PaintedWithFeatures(), "tiny_judge").reference is not None
    with pytest.raises(FileNotFoundError, match=r"there is none at 'tiny_jugde'; give the path.*name of zoo weights"):
        ClassEvaluation(PaintedWithFeatures(), "tiny_jugde")


def test_the_judge_is_frozen_and_stays_in_eval_mode() -> None:
    model = nn.ModuleDict({"evaluation": ClassEvaluation(PaintedWithFeatures(), label=2), "network": nn.Linear(2, 2)})
    model.train()
    assert model["network"].training
    assert not any(module.training for module in model["evaluation"].judge.modules())
    assert not any(parameter.requires_grad for parameter in model["evaluation"].parameters())
    assert set(model["evaluation"].state_dict()) == {"judge.scale"}  # the running figures are no weights


def test_samples_are_measured_as_a_file_would_hold_them(reference: str) -> None:
    stored = as_stored(torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(3)) * 0.3)
    fresh = stored + 0.001 * torch.where(torch.rand(stored.shape) < 0.5, -1, 1)  # less than half of 1/255
    fresh[0, 0, 1] -= 2  # out of range
    stored[0, 0, 1] = 0
    results = []
    for samples in (stored, fresh, (stored * 255).round().byte() / 255):
        evaluation = ClassEvaluation(PaintedWithFeatures(), reference, label=2)
        evaluation.update(samples)
        results.append(evaluation.compute())
    assert results[0] == results[1] == results[2]


def test_mixed_precision_and_inference_mode_change_nothing(reference: str) -> None:
    evaluation = ClassEvaluation(PaintedWithFeatures(), reference, label=2)
    evaluation.update(paint(SHOWN))
    expected = evaluation.compute()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        evaluation.reset()
        evaluation.update(paint(SHOWN))
        assert evaluation.compute() == expected
    evaluation.update(paint(SHOWN))
    assert evaluation.compute()["n"] == 16


def test_a_copy_counts_for_itself(reference: str) -> None:
    evaluation = ClassEvaluation(PaintedWithFeatures(), reference, label=2)
    evaluation.update(paint(SHOWN))
    other = copy.deepcopy(evaluation)
    other.update(paint(SHOWN[:2]))
    assert (evaluation.compute()["n"], other.compute()["n"]) == (8, 10)


def result_of(counts: list[int]) -> dict[str, dict[str, object]]:
    return {"metrics": {"class_histogram": counts}}


def test_compare_leaves_the_label_out() -> None:
    before, after = result_of([20, 40, 20, 20]), result_of([15, 5, 15, 30])
    ClassEvaluation(Painted(), label=1).compare(before, after)
    assert before["metrics"]["total_variation"] == before["metrics"]["total_variation_noise_floor"] == 0.0
    assert after["metrics"]["total_variation"] == pytest.approx(1 / 6)  # thirds against 1/4, 1/4, 1/2
    floor = 3 / 2 * (2 / torch.pi) ** 0.5 * (1 / 3 * 2 / 3 * (1 / 60 + 1 / 60)) ** 0.5
    assert after["metrics"]["total_variation_noise_floor"] == pytest.approx(floor)


def test_compare_without_a_label_counts_every_class() -> None:
    before, after = result_of([20, 40, 20, 20]), result_of([40, 20, 20, 20])
    ClassEvaluation(Painted()).compare(before, after)
    assert after["metrics"]["total_variation"] == pytest.approx(0.2)


def test_compare_where_nothing_but_the_label_remains() -> None:
    before, after = result_of([20, 40, 20, 20]), result_of([0, 100, 0, 0])
    ClassEvaluation(Painted(), label=1).compare(before, after)
    assert after["metrics"]["total_variation"] is None


def test_errors(reference: str) -> None:
    with pytest.raises(ValueError, match=r"integer attribute num_classes, but this Linear has None; set it"):
        ClassEvaluation(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"a probability in \[0, 1\], for example 0.5, got 50"):
        ClassEvaluation(Painted(), confidence=50)
    with pytest.raises(ValueError, match="knows the classes 0 to 3, so not the label 7"):
        ClassEvaluation(Painted(), label=7)
    with pytest.raises(ValueError, match="knows the classes 0 to 3, so not the label 7"):
        ClassEvaluation(Painted()).bind([Forbid(7)])
    with pytest.raises(ValueError, match="finite samples, got NaN; the model has diverged"):
        ClassEvaluation(Painted()).update(torch.full((2, 1, 2, 2), float("nan")))
    nothing = ClassEvaluation(PaintedWithFeatures(), reference, label=2)
    nothing.update(torch.zeros(0, 1, 2, 2))
    with pytest.raises(ValueError, match="at least one sample, got none; call update"):
        nothing.compute()
    with pytest.raises(ValueError, match=r"width 4, but the samples' have shape \(1, 9\)"):
        ClassEvaluation(PaintedWithFeatures(), reference).update(torch.zeros(1, 1, 3, 3))


def test_two_ranks_give_the_figures_of_one(tmp_path, run_program):
    """Also where one of them has no samples at all."""
    program = Path(__file__).with_name("class_evaluation_ranks.py")
    answers = json.loads(run_program(program, tmp_path))
    one = answers["one"]
    assert one["n"] == 21
    assert 0 < one["violation_rate"] < 1
    assert one["metrics"]["fid"] > 0
    for two in (result for rank in answers["two"] for result in rank):
        distances = {name: pytest.approx(one["metrics"][name], rel=1e-9, abs=1e-9) for name in ("fid", "kid")}
        assert two == {**one, "metrics": {**one["metrics"], **distances}}
