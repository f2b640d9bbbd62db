"""`ClassEvaluation`: an independent judge says which class each sample shows, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from constrained_diffusion.domains.images.class_probability import ClassProbability
from constrained_diffusion.domains.images.features import FeatureDistances, ReferenceFeatures
from constrained_diffusion.domains.images.histogram import (
    CONFIDENT,
    ClassCounts,
    total_variation,
    total_variation_noise_floor,
)
from constrained_diffusion.evaluation import Evaluation, Figure
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime import assets
from constrained_diffusion.statistics import ViolationRate

DIGITS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@runtime_checkable
class HasFeatures(Protocol):
    """A judge that also gives its penultimate features."""

    def features(self, images: Tensor) -> Tensor:
        """Map images `(B, *shape)` to `(B, d)`."""


def as_stored(clean: Tensor) -> Tensor:
    """Return images as an 8-bit file would hold them: `clean` clamped to [0, 1], in steps of 1/255, float32.

    Samples that were stored as PNG and samples that come fresh from the model then give the very same figures.

    >>> as_stored(torch.tensor([-0.2, 0.5, 1.3])) * 255
    tensor([  0., 128., 255.])
    """
    return (clean.float().clamp(0, 1) * 255).round() / 255


class ClassEvaluation(Evaluation):
    """How often the judge sees the forbidden class, and what became of the others.

    The judge is frozen in place, and stays in eval mode whatever mode the model around it is in. It should be trained
    independently of the constraint's own classifier.

    Args:
        judge: maps images `(B, *shape)` in [0, 1] to logits `(B, C)`. With an attribute `num_classes`; FID and KID use
            its `.features(images) -> (B, d)` where it has them.
        reference: the file of `ReferenceFeatures` for FID and KID, or the name of zoo weights that hold one
            ("mnist_judge"). Without it, or without features, both are None.
        confidence: samples whose likeliest class has a lower softmax count as non-digits, in [0, 1].
        label: the forbidden class; read from the bound constraints when not given.
        feature_extractor: replaces the judge's features, for example `inception_features(...)`; the reference must then
            come from the same network.
        preprocess: what samples pass before they are judged, for example a crop to the judge's size.

    Raises:
        ValueError: the judge does not say how many classes it has, or has none of that label, or the confidence is
            outside [0, 1].
        FileNotFoundError: the reference is neither a file nor the name of zoo weights.
    """

    def __init__(
        self,
        judge: nn.Module,
        reference: str | None = None,
        confidence: float = 0.5,
        label: int | None = None,
        feature_extractor: nn.Module | None = None,
        preprocess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        num_classes = getattr(judge, "num_classes", None)
        if not isinstance(num_classes, int):
            raise ValueError(
                "ClassEvaluation expects a judge with an integer attribute num_classes, but this "
                f"{type(judge).__name__} has {num_classes}; set it, as in `judge.num_classes = 10`."
            )
        if not 0 <= confidence <= 1:
            raise ValueError(f"confidence is a probability in [0, 1], for example 0.5, got {confidence}.")
        self.judge = judge.requires_grad_(False).eval()
        self.feature_extractor = None if feature_extractor is None else feature_extractor.requires_grad_(False).eval()
        self.confidence, self.num_classes, self.preprocess = confidence, num_classes, preprocess or nn.Identity()
        self._given_label = self.label = None if label is None else self._checked(label)
        self.violations = ViolationRate()
        self.classes = ClassCounts(num_classes, confidence)
        measurable = feature_extractor is not None or isinstance(judge, HasFeatures)
        self.reference = ReferenceFeatures.from_file(_file_of(reference)) if reference and measurable else None
        self.distances = FeatureDistances(self.reference.without(self.label)) if self.reference else None

    @property
    def figures(self) -> Sequence[Figure]:
        """The classes that the judge sees, how sure it is, and the distances from the reference."""
        others = "classes" if self.label is None else f"other {_counted(self.num_classes - 1)}"
        return (
            Figure("class_histogram", "class shares", "histogram", marked=self.label),
            Figure("total_variation", f"total variation of the {others}", "distance", "less", headline=True),
            Figure("non_digit_rate", "non-digits", "rate", "less", headline=True),
            Figure("confident_rate", f"judged with a confidence above {CONFIDENT:g}", "rate", "more"),
            Figure("fid", "FID", "number", "less", headline=True),
            Figure("kid", "KID", "number", "less"),
        )

    @property
    def subject(self) -> str:
        """What the label is called: "fours" for 4 of ten digits, "class 12" else, "violations" without one."""
        if self.label is None:
            return super().subject
        return DIGITS[self.label] if self.num_classes == len(DIGITS) else f"class {self.label}"

    def bind(self, constraints: Sequence[Constraint]) -> None:
        """Take the label of the first `ClassProbability`, unless one was given; forgets all samples.

        Without one, as with a constraint that is not about classes, the judge counts classes and finds no violations.

        Raises:
            ValueError: the judge does not know the label.
        """
        labels = [c.label for c in constraints if isinstance(c, ClassProbability)]
        self.label = self._checked(labels[0]) if self._given_label is None and labels else self._given_label
        if self.distances is not None and self.reference is not None:
            self.distances.reference = self.reference.without(self.label)
        self.reset()

    def _checked(self, label: Any) -> int:
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"the judge knows the classes 0 to {self.num_classes - 1}, so not the label {label}; choose one of "
                "them, or a judge that was trained on it."
            )
        return int(label)

    def train(self, mode: bool = True) -> ClassEvaluation:
        """Set the mode, of everything but the frozen networks."""
        super().train(mode)
        self.judge.eval()
        if self.feature_extractor is not None:
            self.feature_extractor.eval()
        return self

    @torch.no_grad()
    def update(self, clean: Tensor) -> None:
        """Judge one batch of images `(B, *shape)` in [0, 1], as an 8-bit file would hold them.

        Raises:
            ValueError: some hold NaN.
        """
        images = as_stored(self.preprocess(clean))
        if bool(images.isnan().any()):
            raise ValueError(
                "an evaluation expects finite samples, got NaN; the model has diverged, so lower the learning rate or "
                "the penalty coefficient, or test an earlier checkpoint."
            )
        predicted, probability = self._classify(images)
        self.classes.update(predicted, probability)
        if self.label is not None:
            self.violations.update(predicted == self.label)
        if self.distances is not None:
            self.distances.update(self._features(images))

    def compute(self) -> dict[str, Any]:
        """Return {"violation_rate", "violation_upper_95", "n", "metrics"}; call it on every rank.

        The first two are None without a label. The metrics are class_histogram (C counts), non_digit_rate,
        confident_rate, fid and kid.

        Raises:
            ValueError: no sample was measured.
        """
        metrics = self.classes.compute()
        distances = {"fid": None, "kid": None} if self.distances is None else self.distances.compute()
        nothing = {"violation_rate": None, "violation_upper_95": None, "n": sum(metrics["class_histogram"])}
        rate = nothing if self.label is None else self.violations.compute()
        return {**rate, "metrics": {**metrics, **distances}}

    def reset(self) -> None:
        """Forget all samples."""
        for metric in self.children():
            if isinstance(metric, Metric):
                metric.reset()

    @torch.no_grad()
    def marks(self, clean: Tensor) -> list[str]:
        """Return "violation" where the judge sees the label, else "invalid" where it is unsure, else "".

        Images that hold NaN, which `update` refuses, are invalid: the grid of a diverged model can still be drawn.
        """
        images = as_stored(self.preprocess(clean))
        predicted, probability = self._classify(images.nan_to_num())
        broken = images.isnan().flatten(1).any(1)
        violation = (predicted == (-1 if self.label is None else self.label)) & ~broken
        invalid = (probability < self.confidence) | broken
        rows = zip(violation.tolist(), invalid.tolist(), strict=True)
        return ["violation" if v else "invalid" if i else "" for v, i in rows]

    def compare(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Write total_variation of the classes but the label, and its noise floor, into both "metrics", in place.

        The floor is what two independent samples of the `before` distribution would show. Both figures are 0 in
        `before` itself, and None in `after` where one of the models draws nothing but the label.
        """
        a, b = before["metrics"]["class_histogram"], after["metrics"]["class_histogram"]
        n_a, n_b = (sum(counts) - (0 if self.label is None else counts[self.label]) for counts in (a, b))
        both = min(n_a, n_b) > 0
        before["metrics"] |= {"total_variation": 0.0, "total_variation_noise_floor": 0.0}
        after["metrics"] |= {
            "total_variation": total_variation(a, b, self.label) if both else None,
            "total_variation_noise_floor": total_variation_noise_floor(a, n_a, n_b, self.label) if both else None,
        }

    def _classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest class and its probability, `(B,)` each."""
        with _full_precision(images):
            probability, predicted = self.judge(images).softmax(dim=1).max(dim=1)
        return predicted, probability

    def _features(self, images: Tensor) -> Tensor:
        with _full_precision(images):
            if self.feature_extractor is None:
                return cast(HasFeatures, self.judge).features(images)
            features: Tensor = self.feature_extractor(images)
            return features


def _full_precision(images: Tensor) -> torch.autocast:
    return torch.autocast(images.device.type, enabled=False)


def _counted(count: int) -> str:
    return COUNTS[count] if count < len(COUNTS) else f"{count:,} classes"


def _file_of(reference: str) -> Path:
    return assets.path(reference) / "reference.safetensors" if reference in assets.available() else Path(reference)
