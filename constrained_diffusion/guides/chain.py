"""Several guides, one around the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.prediction import Predict
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.objectives import Constraint


class Chain(Guide):
    """Applies guides in order: the first one sees the denoiser's own prediction, the last one has the last word.

    Args:
        guides: one or more.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, guides: Sequence[Guide]) -> None:
        super().__init__()
        if not guides:
            raise ValueError("Chain expects at least one guide, got none; leave the guide out instead.")
        self.guides = nn.ModuleList(guides)

    def forward(self, predict: Predict, denoiser: Denoiser) -> Predict:
        for guide in self.guides:
            predict = guide(predict, denoiser)
        return predict

    def hold(self, noisy: Tensor, timesteps: Tensor, denoiser: Denoiser) -> tuple[Tensor, Tensor]:
        for guide in self.guides:
            noisy, timesteps = guide.hold(noisy, timesteps, denoiser)  # type: ignore[operator]
        return noisy, timesteps

    def bind(self, constraints: Sequence[Constraint]) -> None:
        for guide in self.guides:
            guide.bind(constraints)  # type: ignore[operator]

    def check_data(self, shape: tuple[int, ...]) -> None:
        for guide in self.guides:
            guide.check_data(shape)  # type: ignore[operator]
