"""Distances between two sets of features: Frechet (FID) and kernel (KID), to reference statistics without one class.

| symbol | code | shape |
|---|---|---|
| classes, features kept of each, feature width | `C`, `m`, `d` | |
| mu, Sigma | `mean`, `covariance` | `(d,)`, `(d, d)` |
| k(x, y) = (x . y / d + 1)^3 | torchmetrics' `poly_kernel` | |

torchmetrics' FID and KID classes are not used: the sums that they hold of the real side would be added up once for
every rank, and KID draws its subsets from the global generator. Here the real side is a constant, and KID is the
unbiased estimate from all samples, the same on every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.kid import poly_kernel
from torchmetrics.utilities.data import dim_zero_cat

from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.distribution import needs_extra

_ROWS = 1024  # rows of a kernel matrix held at once


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) in float64 (Heusel et al. 2017, arXiv 1706.08500).

    The trace of the root is taken from the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is symmetric, so that singular
    covariances (fewer samples than features) do no harm.

    Args:
        mean_a: `(d,)`.
        covariance_a: `(d, d)`, symmetric and positive semidefinite.
        mean_b: as `mean_a`, of the other side.
        covariance_b: as `covariance_a`, of the other side.
    """
    values, vectors = torch.linalg.eigh(covariance_a.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b.double() @ root).clamp(min=0).sqrt().sum()
    gap = (mean_a.double() - mean_b.double()).square().sum()
    return float(gap + covariance_a.double().trace() + covariance_b.double().trace() - 2 * cross)


def kernel_between(a: Tensor, b: Tensor) -> float:
    """Return the mean of k(x, y) over all pairs of rows of `a` `(n, d)` and `b` `(m, d)`, in float64."""
    total = sum(float(poly_kernel(rows, b.double()).sum()) for rows in a.double().split(_ROWS))
    return total / (len(a) * len(b))


def kernel_within(a: Tensor) -> float:
    """Return the mean of k(x, y) over all ordered pairs of two different rows of `a` `(n, d)`, n >= 2, in float64."""
    a = a.double()
    total = -float((a.square().sum(1) / a.shape[1] + 1).pow(3).sum())  # a row with itself does not count
    for start in range(0, len(a), _ROWS):
        rows, later = a[start : start + _ROWS], a[start + _ROWS :]
        total += float(poly_kernel(rows, rows).sum()) + 2 * float(poly_kernel(rows, later).sum())
    return total / (len(a) * (len(a) - 1))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Return the unbiased squared MMD of `a` `(n, d)` and `b` `(m, d)` (KID, Binkowski et al. 2018, arXiv 1801.01401).

    All pairs are used, so that there is nothing random in it. It can be slightly negative where the two agree.
    """
    return kernel_within(a) + kernel_within(b) - 2 * kernel_between(a, b)


@dataclass(frozen=True)
class ReferenceStatistics:
    """One fixed set of real features, as the two distances need it; float64 on the CPU."""

    mean: Tensor  #: `(d,)`
    covariance: Tensor  #: `(d, d)`
    features: Tensor  #: `(m, d)`

    @cached_property
    def kernel(self) -> float:
        """The mean kernel of the features among themselves, which costs the most and never changes."""
        return kernel_within(self.features)


@dataclass(frozen=True)
class ReferenceFeatures:
    """Features of real data per class, kept so that any class can be left out; one safetensors file.

    Raises:
        ValueError: the shapes do not belong together.
    """

    features: Tensor  #: `(C, m, d)`, float16, m examples of each class, for KID
    count: Tensor  #: `(C,)`, float64, how many examples the sums below hold
    sum: Tensor  #: `(C, d)`, float64
    outer: Tensor  #: `(C, d, d)`, float64, sum of x x^T

    def __post_init__(self) -> None:
        shapes = [tuple(getattr(self, field.name).shape) for field in fields(self)]
        classes, kept, width = (*shapes[0], 0, 0, 0)[:3]
        if shapes != [(classes, kept, width), (classes,), (classes, width), (classes, width, width)]:
            raise ValueError(
                "reference features expect features (C, m, d), count (C,), sum (C, d) and outer (C, d, d), got shapes "
                f"{', '.join(map(str, shapes))}; make them with ReferenceFeatures.measure."
            )

    @classmethod
    def from_file(cls, path: str | Path) -> ReferenceFeatures:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is truncated, no safetensors file, or holds other tensors.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"reference features expect a safetensors file, but there is none at '{path}'; give the path of one "
                "that ReferenceFeatures.save wrote, or the name of zoo weights that hold one, such as 'mnist_judge'."
            )
        tensors, _ = untrusted.read_tensors(path)
        expected = [field.name for field in fields(cls)]
        if sorted(tensors) != sorted(expected):
            raise ValueError(
                f"'{path}' should hold the tensors {', '.join(expected)}, but holds {', '.join(sorted(tensors))}; "
                "give a file that ReferenceFeatures.save wrote."
            )
        return cls(**tensors)

    @classmethod
    def measure(
        cls,
        extract: Callable[[Tensor], Tensor],
        batches: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
        keep: int = 1000,
    ) -> ReferenceFeatures:
        """Collect the features of real data.

        Args:
            extract: maps data `(B, *shape)` to features `(B, d)`.
            batches: pairs of data `(B, *shape)` and class labels `(B,)`.
            num_classes: C.
            keep: m, how many features of each class are kept; the first that come.

        Raises:
            ValueError: a class has fewer than `keep` examples.
        """
        found: list[list[Tensor]] = [[] for _ in range(num_classes)]
        with torch.no_grad():
            for data, labels in batches:
                features = extract(data).double().cpu()
                for label in labels.unique().tolist():
                    found[label].append(features[labels.cpu() == label])
        counts = [sum(map(len, parts)) for parts in found]
        if min(counts) < keep:
            raise ValueError(
                f"reference features keep {keep} examples of each of {num_classes} classes, but class "
                f"{counts.index(min(counts))} has {min(counts)}; give more data, or a smaller `keep`."
            )
        of_class = [torch.cat(parts) for parts in found]
        return cls(
            features=torch.stack([x[:keep] for x in of_class]).half(),
            count=torch.tensor(counts, dtype=torch.float64),
            sum=torch.stack([x.sum(0) for x in of_class]),
            outer=torch.stack([x.T @ x for x in of_class]),
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with the four tensors."""
        from safetensors.torch import save_file

        save_file({field.name: getattr(self, field.name).contiguous() for field in fields(self)}, path)

    def without(self, label: int | None) -> ReferenceStatistics:
        """Return the statistics of all classes but `label`, or of all for None.

        Raises:
            ValueError: there is no class of that number.
        """
        if label is not None:
            self._check(label)
        return self._of([c for c in range(len(self.count)) if c != label])

    def only(self, label: int) -> ReferenceStatistics:
        """Return the statistics of the class `label` alone.

        Raises:
            ValueError: there is no class of that number.
        """
        self._check(label)
        return self._of([label])

    def _check(self, label: int) -> None:
        last = len(self.count) - 1
        if not 0 <= label <= last:
            raise ValueError(f"the reference features hold the classes 0 to {last}, so not the label {label}.")

    def _of(self, kept: list[int]) -> ReferenceStatistics:
        n = self.count[kept].sum()
        mean = self.sum[kept].sum(0) / n
        covariance = (self.outer[kept].sum(0) - n * torch.outer(mean, mean)) / (n - 1)
        return ReferenceStatistics(mean, covariance, self.features[kept].flatten(0, 1).double())


class FeatureDistances(Metric):
    """FID and KID of the samples' features to a fixed reference; the features are gathered over ranks.

    Args:
        reference: what to compare with.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    features: list[Tensor]

    def __init__(self, reference: ReferenceStatistics, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference = reference
        self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, features: Tensor) -> None:
        """Take in one batch of features `(B, d)`.

        Raises:
            ValueError: they have another width than the reference.
        """
        if features.ndim != 2 or features.shape[1] != len(self.reference.mean):
            raise ValueError(
                f"the reference holds features of width {len(self.reference.mean)}, but the samples' have shape "
                f"{tuple(features.shape)}; give the reference file that was made with the same network."
            )
        self.features.append(features.detach())

    def compute(self) -> dict[str, float | None]:
        """Return {"fid", "kid"}; None each with fewer than two samples, of which there is no covariance."""
        features = dim_zero_cat(self.features).double().cpu()
        if len(features) < 2:
            return {"fid": None, "kid": None}
        real = self.reference
        fid = frechet_distance(features.mean(0), features.T.cov(), real.mean, real.covariance)
        kid = kernel_within(features) + real.kernel - 2 * kernel_between(features, real.features)
        return {"fid": fid, "kid": kid}


def inception_features(weights_path: str | Path) -> nn.Module:
    """Return the network behind the published FID: images `(B, 1 or 3, H, W)` in [0, 1] to features `(B, 2048)`.

    Args:
        weights_path: torch-fidelity's weights-inception-2015-12-05-6726825d.pth.

    Raises:
        ImportError: torch-fidelity is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it holds something else than weights.
    """
    if not Path(weights_path).is_file():
        raise FileNotFoundError(
            f"Inception features expect a weights file, but there is none at '{weights_path}'; download "
            "weights-inception-2015-12-05-6726825d.pth from torch-fidelity's releases, or use the judge's own features."
        )
    with needs_extra("fid", "Inception features need torch-fidelity"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    try:
        untrusted.read_checkpoint(weights_path)  # torch-fidelity itself would unpickle anything
        extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights_path))
    except (ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"'{weights_path}' holds no plain weights ({said}); download it again.") from error
    return _Inception(extractor)


class _Inception(nn.Module):
    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        features: Tensor = self.extractor(pixels)[0]
        return features
