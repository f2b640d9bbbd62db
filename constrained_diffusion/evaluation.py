"""What validate and test measure on the samples of one domain; subclass `Evaluation` for a new one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from constrained_diffusion.condition import Condition
from constrained_diffusion.constraint_rates import judges_samples
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime.precision import keep_float32

Kind = Literal["rate", "number", "count", "distance", "histogram", "distribution"]


@dataclass(frozen=True)
class Figure:
    """One entry of an evaluation's "metrics": what it is called, how it is written, which way is better.

    | kind | the entry | beside it |
    |---|---|---|
    | rate | a share in [0, 1] | `KEY_95`: its interval [lower, upper] |
    | number, count | a number, a whole number | |
    | distance | how far two distributions are apart | `KEY_noise_floor`: what two samples of one would show |
    | histogram | counts per class; drawn | |
    | distribution | {"x": [..], "share": [..]}; drawn | |

    Raises:
        ValueError: no such kind, or no such way.
    """

    key: str  #: its name in "metrics"
    label: str  #: what reports call it
    kind: Kind = "number"
    better: Literal["less", "more"] | None = None
    headline: bool = False  #: whether the verdict names it, and the end of a fit as part of what it cost
    marked: int | None = None  #: of a histogram: the class that is to be gone

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.better not in ("less", "more", None):
            raise ValueError(
                f"the figure '{self.key}' expects a kind of {', '.join(get_args(Kind))}, and better: less, more or "
                f"None; got {self.kind!r} and {self.better!r}."
            )

    def companions(self) -> tuple[str, ...]:
        """Return the names of the entries that are written beside it, and have no line of their own."""
        return (f"{self.key}_95",) if self.kind == "rate" else (f"{self.key}_noise_floor",)

    @classmethod
    def from_json(cls, entry: Any) -> Figure | None:
        """Return the figure that `asdict` wrote, or None where `entry` is none."""
        if not isinstance(entry, dict) or not {"key", "label"} <= entry.keys() <= {f.name for f in fields(cls)}:
            return None
        words, marked = (entry["key"], entry["label"]), entry.get("marked")
        if not all(isinstance(word, str) for word in words) or type(marked) not in (int, type(None)):
            return None
        try:
            return cls(**entry)
        except (ValueError, TypeError):
            return None


def images(clean: Tensor) -> Tensor | None:
    """Return samples `(B, C, H, W)` that are images for sure, else None: C = 1, or C = 3 or 4 and sides of at least 8.

    Other samples may have four dimensions too, such as `(B, tokens, frames, channels)`; an evaluation of its own draws
    them.
    """
    if clean.ndim != 4 or clean.shape[1] not in (1, 3, 4):
        return None
    return clean if min(clean.shape[2:]) >= (3 if clean.shape[1] == 1 else 8) else None


class Evaluation(nn.Module, ABC):
    """Figures of a set of samples, gathered batch by batch and reduced over ranks.

    It stays outside training: nothing here is optimised, and no model is selected by it. Its running figures belong in
    torchmetrics states, so that every rank computes the same result; `compute` is therefore to be called on all ranks.
    """

    overlays_legend: str = ""  #: says what `overlays` show; "" where there are none

    @property
    def figures(self) -> Sequence[Figure]:
        """The entries of "metrics", as reports should show them, in that order; others follow by their names."""
        return ()

    @property
    def subject(self) -> str:
        """What the samples that it finds violating are called, in the plural: "fours"."""
        return "violations"

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return super()._apply(keep_float32(fn), recurse)  # type: ignore[no-untyped-call, no-any-return]

    def bind(self, constraints: Sequence[Constraint]) -> None:
        """Read what the evaluation needs from the fitted constraints; called once, before the first `update`.

        Args:
            constraints: those of the fit, in its order; empty in pretraining.
        """

    @abstractmethod
    def update(self, clean: Tensor) -> None:
        """Measure one batch of samples `(B, *shape)`, in the data's units; B = 0 on a rank without samples."""

    def update_asked(self, clean: Tensor, condition: Condition | None) -> None:
        """Measure one batch of samples by what the model was asked for; by default that has no say.

        Args:
            clean: `(B, *shape)`, in the data's units.
            condition: of each sample; None where the denoiser is unconditional.
        """
        self.update(clean)

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

        Asked only of an evaluation with an `overlays_legend`: else nobody draws samples for it.
        """
        return {}

    def declared(self) -> dict[str, Any]:
        """Return what reports need to know of the evaluation, JSON-ready: figures, subject, legend of its overlays."""
        return {
            "figures": [asdict(figure) for figure in self.figures],
            "subject": self.subject,
            "overlays_legend": self.overlays_legend,
        }

    def compare(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Write the figures that need both results into `after["metrics"]`, and their zeros into `before`'s, in place.

        Args:
            before: what `compute` returned for the pretrained model.
            after: what it returned for the fine-tuned model.
        """


class OwnViolations(Evaluation):
    """The evaluation of constraints that nobody else judges: samples are marked where their own g says so.

    It finds nothing of its own: how often each constraint is broken is counted beside every evaluation. It is the
    default where there are constraints and no evaluation is given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = SumMetric()
        self._constraints: tuple[Constraint, ...] = ()  # in a tuple: the model owns, moves and stores them

    def bind(self, constraints: Sequence[Constraint]) -> None:
        """Take the constraints that judge samples; forgets all samples."""
        self._constraints = tuple(filter(judges_samples, constraints))
        self.reset()

    def update(self, clean: Tensor) -> None:
        """Count the samples of `clean` `(B, *shape)`."""
        self.count.update(len(clean))

    def compute(self) -> dict[str, Any]:
        """Return the number of samples; both rates are None, because there is no judge."""
        return {"violation_rate": None, "violation_upper_95": None, "n": int(self.count.compute()), "metrics": {}}

    def reset(self) -> None:
        """Forget all samples."""
        self.count.reset()

    @torch.no_grad()
    def marks(self, clean: Tensor) -> list[str]:
        """Return "violation" where a sample breaks one of the constraints by its own g, else ""."""
        broken = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        for constraint in self._constraints:
            broken = broken | ~constraint.holds(clean)
        return ["violation" if row else "" for row in broken.tolist()]
