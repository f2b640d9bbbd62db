"""What a sample must satisfy (`Constraint`), what it should maximise (`Reward`).

Sign convention: a constraint is the inequality g(x) <= 0, so a *negative* value means feasible. A reward is larger when
better. Both are measured on clean samples in the units of the data (for MNIST: pixels in [0, 1]), never on the
normalised tensors that the network sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from constrained_diffusion.condition import Condition
from constrained_diffusion.objectives.measure import measure_constraint
from constrained_diffusion.runtime.precision import to_float32, without_autocast


@dataclass(frozen=True)
class StepRecord:
    """Everything that one training step knows; what a constraint with `needs_step_record` receives.

    All tensors share the batch dimension `B`. Clean samples are in the data's units, the others in the network's.
    """

    predicted_clean: Tensor  #: `(B, *shape)`, x-hat(x_t, t), in the data's units
    noisy: Tensor  #: `(B, *shape)`, x_t
    timesteps: Tensor  #: `(B,)`
    noise: Tensor  #: `(B, *shape)`, epsilon
    predicted_noise: Tensor  #: `(B, *shape)`, epsilon_theta(x_t, t)
    frozen_noise: Tensor | None = None  #: the pretrained model's prediction on the same input, where one is kept
    condition: Condition | None = None  #: of the denoiser, one row per sample


class Constraint(nn.Module, ABC):
    """An inequality g(x) <= 0 on clean samples; subclass and write `forward` (P eq. 12).

    Args:
        tolerance: delta of eq. 14, in units of g: a sample counts as violating where g(x) > tolerance.

    Class attributes:
        differentiable: whether gradients flow from g to x; fine-tuning refuses a constraint where they do not.
        needs_step_record: whether `forward` wants the `StepRecord` instead of the clean sample.
        in_expectation: whether the mean of g over the rows is what must not exceed the tolerance, not each row's own g.
        margin: how much of g is there for safety: it is aimed at g <= tolerance, but a sample counts as violating only
            where g > tolerance + margin.
        has_verdict: whether a sample that breaks it counts as violating; otherwise it steers a fit and has no verdict,
            such as the walls that a planner should not be driven into by forbidden zones.
    """

    differentiable: bool = True
    needs_step_record: bool = False
    in_expectation: bool = False
    margin: float = 0.0
    has_verdict: bool = True

    def __init__(self, tolerance: float = 0.0) -> None:
        super().__init__()
        self.tolerance = tolerance

    @abstractmethod
    def forward(self, clean: Tensor) -> Tensor:
        """Return g of shape `(B,)` or `(B, m)` for `clean` of shape `(B, *shape)`; negative means feasible."""

    def check_data(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if samples of `shape` (without batch) cannot be judged; called before training starts."""

    @torch.no_grad()
    def holds(self, clean: Tensor) -> Tensor:
        """Return whether each of `clean` `(B, *shape)` satisfies the constraint, `(B,)`, bool; g must be a number.

        Raises:
            TypeError, ValueError: as `measure_constraint`.
        """
        clean = to_float32(clean)
        with without_autocast(clean):  # under autocast a classifier would round its verdict
            values = measure_constraint(self, clean)
        return (values <= self.tolerance + self.margin).all(1)


class Reward(nn.Module, ABC):
    """A scalar to be maximised: `forward` maps `(B, *shape)` in the data's units to `(B,)`, larger is better.

    Class attributes:
        differentiable: whether gradients flow from the reward to the sample.
        needs_prompts: whether it judges how a sample fits its text; then it is called as `reward(clean, prompts)`, with
            one string per row.
    """

    differentiable: bool = True
    needs_prompts: bool = False

    @abstractmethod
    def forward(self, clean: Tensor) -> Tensor:
        """Return the reward of each sample, shape `(B,)`."""

    def check_data(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if samples of `shape` (without batch) cannot be judged; called before work starts."""
