"""The interface of all guides: a function from predictions to predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.prediction import Predict
from constrained_diffusion.objectives import Constraint


class Guide(nn.Module, ABC):
    """Steers sampling by changing what the denoiser predicts; subclass and write `forward`.

    Its `repr` must tell all its settings: cached samples of other settings are told apart by it.
    """

    @abstractmethod
    def forward(self, predict: Predict, denoiser: Denoiser) -> Predict:
        """Return the guided form of `predict`, `(x_t, timesteps) -> Prediction` in network units, for one sampling."""

    def hold(self, noisy: Tensor, timesteps: Tensor, denoiser: Denoiser) -> tuple[Tensor, Tensor]:
        """Return x_t and timesteps with what the guide holds clean put in place; a training step sees the same."""
        return noisy, timesteps

    def bind(self, constraints: Sequence[Constraint]) -> None:
        """Read what was left open from the constraints of a fit; called once, before the guide is used in it."""

    def check_data(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if samples of `shape` (without batch) cannot be guided; called before work starts."""
