"""Feature distances against scipy and torchmetrics, and the file that holds the real side."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import linalg
from torch import Tensor, nn
from torchmetrics.image import FrechetInceptionDistance, KernelInceptionDistance

from constrained_diffusion.domains.images import features
from constrained_diffusion.domains.images.features import (
    FeatureDistances,
    ReferenceFeatures,
    frechet_distance,
    inception_features,
    kernel_distance,
)
from constrained_diffusion.runtime.distribution import install_hint


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated features, `(n, d)`, float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + shift


def frechet_of(a: Tensor, b: Tensor) -> float:
    return frechet_distance(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())


def labelled(per_class: int = 30, d: int = 5, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Features that half precision holds exactly, and their class labels."""
    data = torch.cat([normal(per_class + c, d, seed=c, shift=c) for c in range(classes)]).half().double()
    return data, torch.cat([torch.full((per_class + c,), c) for c in range(classes)])


@pytest.fixture
def reference() -> ReferenceFeatures:
    data, labels = labelled()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    batches = [(data[rows], labels[rows]) for rows in order.split(17)]
    return ReferenceFeatures.measure(nn.Identity(), batches, num_classes=4, keep=20)


class Width(nn.Identity):
    """Features pass through; torchmetrics asks for the width."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def test_frechet_distance_against_sqrtm_and_torchmetrics() -> None:
    a, b = normal(300, 6, seed=0), normal(200, 6, seed=1, shift=0.3)
    covariances = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum().item()
    assert frechet_of(a, b) == pytest.approx(gap + np.trace(covariances[0] + covariances[1] - 2 * root), abs=1e-9)

    theirs = FrechetInceptionDistance(feature=Width(6), normalize=True)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert frechet_of(a, b) == pytest.approx(theirs.compute().item(), abs=1e-9)


def test_frechet_distance_of_singular_covariances() -> None:
    zero, a, b = torch.zeros(3), torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 9.0])
    assert frechet_distance(zero, a.diag(), zero, b.diag()) == pytest.approx(1 + 1 + 9)  # (sqrt a - sqrt b)^2
    few = normal(10, 40, seed=0)
    assert frechet_of(few, few) == pytest.approx(0, abs=1e-5)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all:UserWarning")
def test_kernel_distance_against_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(50, 6, seed=0), normal(50, 6, seed=1, shift=0.2)
    theirs = KernelInceptionDistance(feature=Width(6), subsets=1, subset_size=50)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert kernel_distance(a, b) == pytest.approx(theirs.compute()[0].item(), abs=1e-10)
    monkeypatch.setattr(features, "_ROWS", 7)  # more blocks than one, the last one shorter
    assert kernel_distance(a, b) == pytest.approx(theirs.compute()[0].item(), abs=1e-10)


def test_kernel_distance_of_unequal_numbers_is_the_sum_over_pairs() -> None:
    a, b = normal(5, 3, seed=0).numpy(), normal(8, 3, seed=1).numpy()
    k = lambda x, y: (x @ y / 3 + 1) ** 3  # noqa: E731
    within = [np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    between = np.mean([k(x, y) for x in a for y in b])
    distance = kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert distance == pytest.approx(sum(within) - 2 * between, abs=1e-12)


@pytest.mark.parametrize("label", [None, 0, 3])
def test_leaving_a_class_out_is_as_if_it_had_never_been_measured(
    reference: ReferenceFeatures, label: int | None
) -> None:
    data, labels = labelled()
    rest = data if label is None else data[labels != label]
    statistics = reference.without(label)
    torch.testing.assert_close(statistics.mean, rest.mean(0))
    torch.testing.assert_close(statistics.covariance, rest.T.cov())
    assert len(statistics.features) == 20 * (4 if label is None else 3)
    known = {tuple(row) for row in rest.tolist()}
    assert all(tuple(row) in known for row in statistics.features.tolist())


def test_the_file_gives_back_what_was_measured(reference: ReferenceFeatures, tmp_path: Path) -> None:
    reference.save(tmp_path / "reference.safetensors")
    read = ReferenceFeatures.from_file(tmp_path / "reference.safetensors")
    assert (read.features.dtype, read.features.shape) == (torch.float16, (4, 20, 5))
    assert read.outer.dtype == torch.float64
    for name in ("features", "count", "sum", "outer"):
        assert torch.equal(getattr(read, name), getattr(reference, name))


def test_bad_files_are_named(reference: ReferenceFeatures, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    with pytest.raises(FileNotFoundError, match=r"there is none at '.*reference.safetensors'; give the path"):
        ReferenceFeatures.from_file(path)

    reference.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"is no complete safetensors file .*copy or make it again"):
        ReferenceFeatures.from_file(path)

    path.write_bytes(whole)
    tensors = load_file(path)
    save_file({"features": tensors["features"], "mean": tensors["sum"]}, path)
    with pytest.raises(
        ValueError, match="should hold the tensors features, count, sum, outer, but holds features, mean"
    ):
        ReferenceFeatures.from_file(path)

    save_file(tensors | {"sum": tensors["sum"][:, :4].contiguous()}, path)
    with pytest.raises(ValueError, match=r"got shapes \(4, 20, 5\), \(4,\), \(4, 4\), \(4, 5, 5\)"):
        ReferenceFeatures.from_file(path)


def test_bad_reference_requests(reference: ReferenceFeatures) -> None:
    with pytest.raises(ValueError, match="hold the classes 0 to 3, so not the label 4"):
        reference.without(4)
    data, labels = labelled()
    with pytest.raises(ValueError, match="keep 31 examples of each of 4 classes, but class 0 has 30"):
        ReferenceFeatures.measure(nn.Identity(), [(data, labels)], num_classes=4, keep=31)


def test_feature_distances(reference: ReferenceFeatures) -> None:
    statistics, samples = reference.without(2), normal(64, 5, seed=9)
    metric = FeatureDistances(statistics)
    for rows in samples.split(10):
        metric.update(rows)
    first = metric.compute()
    data, labels = labelled()
    assert first["fid"] == pytest.approx(frechet_of(samples, data[labels != 2]), abs=1e-9)
    assert first["kid"] == pytest.approx(kernel_distance(samples, statistics.features), abs=1e-9)

    metric.reset()
    torch.manual_seed(1)  # the global generator plays no part
    metric.update(samples)
    assert metric.compute() == pytest.approx(first, abs=1e-10)


def test_the_same_samples_are_at_distance_zero(reference: ReferenceFeatures) -> None:
    data, labels = labelled()
    metric = FeatureDistances(reference.without(1))
    metric.update(data[labels != 1])
    assert metric.compute()["fid"] == pytest.approx(0, abs=1e-6)


def test_feature_distances_of_too_few_or_foreign_features(reference: ReferenceFeatures) -> None:
    metric = FeatureDistances(reference.without(None))
    metric.update(torch.zeros(1, 5))
    assert metric.compute() == {"fid": None, "kid": None}
    with pytest.raises(ValueError, match=r"width 5, but the samples' have shape \(3, 8\); give the reference file"):
        metric.update(torch.zeros(3, 8))


def test_inception_without_file_or_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match=r"none at '.*weights.pth'; download weights-inception-2015-12-05"):
        inception_features(path)
    torch.save(Width, path)  # a pickled class is no weights file
    with pytest.raises(ValueError, match="holds no plain weights"):
        inception_features(path)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("fid"))):
        inception_features(path)


def test_inception_on_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    cls, path = fidelity.FeatureExtractorInceptionV3, tmp_path / "weights.pth"
    torch.save({}, path)
    with monkeypatch.context() as patch:  # the constructor insists on weights: let it keep those it was born with
        patch.setattr(cls, "load_state_dict", lambda self, state: None)
        torch.save(cls("inception-v3-compat", ["2048"], str(path)).state_dict(), path)
    network = inception_features(path)
    assert not network.extractor.training
    gray = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    ours = network(gray)
    assert ours.shape == (2, 2048)
    assert torch.equal(ours, network(gray.repeat(1, 3, 1, 1)))
    assert torch.equal(ours, network.extractor((gray * 255).round().byte().repeat(1, 3, 1, 1))[0])


@pytest.mark.inception
@pytest.mark.skipif(
    "CONSTRAINED_DIFFUSION_INCEPTION" not in os.environ,
    reason="needs the real Inception weights: set CONSTRAINED_DIFFUSION_INCEPTION to the file",
)
def test_inception_on_the_real_weights() -> None:
    network = inception_features(os.environ["CONSTRAINED_DIFFUSION_INCEPTION"])
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = network(images)
    theirs = FrechetInceptionDistance(
        2048, feature_extractor_weights_path=os.environ["CONSTRAINED_DIFFUSION_INCEPTION"], antialias=False
    ).inception((images * 255).round().byte())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
