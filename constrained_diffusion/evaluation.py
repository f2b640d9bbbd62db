"""What validate and test measure on the samples of one domain; subclass `Evaluation` for a new one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime.precision import keep_float32


def images(clean: Tensor) -> Tensor | None:
    """Return samples `(B, C, H, W)` that are images for sure, else None: C = 1, or C = 3 or 4 and sides of at least 8.

    Other samples have four dimensions too: plans are `(B, tokens, frames, channels)`, of 3 tokens or more and 2, 4 or
    6 channels.
    """
    if clean.ndim != 4 or clean.shape[1] not in (1, 3, 4):
        return None
    return clean if min(clean.shape[2:]) >= (3 if clean.shape[1] == 1 else 8) else None


class Evaluation(nn.Module, ABC):
    """Figures of a set of samples, gathered batch by batch and reduced over ranks.

    It stays outside training: nothing here is optimised, and no model is selected by it. Its running figures belong in
    torchmetrics states, so that every rank computes the same result; `compute` is therefore to be called on all ranks.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return super()._apply(keep_float32(fn), recurse)  # type: ignore[no-untyped-call, no-any-return]

    def bind(self, constraints: Sequence[Constraint]) -> None:
        """Read what the evaluation needs from the fitted constraints; called once, before the first `update`.

        Args:
            constraints: those of the fit, in its order; empty in pretraining.
        """

    @abstractmethod
    def update(self, clean: Tensor) -> None:
        """Measure one batch of samples `(B, *shape)`, in the data's units."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """Return {"violation_rate", "violation_upper_95", "n", "metrics": {...}} of all ranks' samples, JSON-ready."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all samples."""

    @abstractmethod
    def marks(self, clean: Tensor) -> list[str]:
        """Return "violation", "invalid" or "" for each sample of `clean` `(B, *shape)`, in the data's units."""

    def pictures(self, clean: Tensor) -> Tensor | None:
        """Return `(B, C, H, W)` in [0, 1], C = 1, 3 or 4, that show the samples; None where they cannot be drawn.

        By default the samples themselves, where they are images for sure.

        Args:
            clean: `(B, *shape)`, in the data's units; whether they can be drawn depends on their shape alone.
        """
        return images(clean)

    def overlays(self, clean: Tensor) -> dict[str, bytes]:
        """Return PNG pictures that each show all samples at once, by name; the main one has the name "".

        By default there are none, and then nobody draws samples for them.
        """
        return {}

    def compare(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Write the figures that need both results into `after["metrics"]`, and their zeros into `before`'s, in place.

        Args:
            before: what `compute` returned for the pretrained model.
            after: what it returned for the fine-tuned model.
        """
