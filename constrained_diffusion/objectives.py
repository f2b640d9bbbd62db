"""What a sample must satisfy (`Constraint`), what it should maximise (`Reward`), and the registry of both.

Sign convention: a constraint is the inequality g(x) <= 0, so a *negative* value means feasible. A reward is larger when
better. Both are measured on clean samples in the units of the data (for MNIST: pixels in [0, 1]), never on the
normalised tensors that the network sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from constrained_diffusion.precision import single, unrounded


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
        counts: whether a sample that breaks it counts as violating; otherwise it steers a fit and has no verdict, such
            as the walls that a planner shall not be driven into by forbidden zones.
    """

    differentiable: bool = True
    needs_step_record: bool = False
    in_expectation: bool = False
    margin: float = 0.0
    counts: bool = True

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
        """Return whether each of `clean` `(B, *shape)` satisfies the constraint, `(B,)`, bool; g must be a number."""
        clean = single(clean)
        with unrounded(clean):  # under autocast a classifier would round its verdict
            values: Tensor = self(clean).reshape(len(clean), -1)
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


class RewardAtLeast(Constraint):
    """The constraint r(x) >= threshold, that is g(x) = threshold - r(x).

    Args:
        reward: the reward r.
        threshold: the least acceptable reward, in the reward's own unit.
        tolerance: delta, in the same unit.

    Raises:
        ValueError: the reward needs prompts, which a constraint is not given.
    """

    def __init__(self, reward: Reward, threshold: float, tolerance: float = 0.0) -> None:
        super().__init__(tolerance)
        if reward.needs_prompts:
            raise ValueError(
                f"RewardAtLeast expects a reward of the clean sample alone, but {type(reward).__name__} needs a prompt "
                "for every row, which a constraint is not given; choose a reward without prompts."
            )
        self.reward = reward
        self.threshold = threshold
        self.differentiable = reward.differentiable

    def check_data(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the reward cannot judge samples of `shape` (without batch)."""
        self.reward.check_data(shape)

    def forward(self, clean: Tensor) -> Tensor:
        """Return `threshold - reward(clean)`, shape `(B,)`."""
        reward: Tensor = self.reward(clean)
        return self.threshold - reward


class Feasibility(Reward):
    """The reward of obeying a constraint: minus the worst violation, 0 for every feasible sample.

    Args:
        constraint: any constraint on clean samples; its own tolerance counts.

    Raises:
        ValueError: the constraint needs the whole step record, which does not exist outside training.
    """

    def __init__(self, constraint: Constraint) -> None:
        super().__init__()
        if constraint.needs_step_record:
            raise ValueError(
                f"Feasibility expects a constraint on clean samples, but {type(constraint).__name__} needs the step "
                "record of training; use it in fine-tuning, or choose a constraint of the clean sample alone."
            )
        self.constraint = constraint
        self.differentiable = constraint.differentiable

    def forward(self, clean: Tensor) -> Tensor:
        """Return `-max_k relu(g_k(clean) - tolerance)`, shape `(B,)`, values <= 0."""
        values = self.constraint(clean).reshape(len(clean), -1)
        return -torch.relu(values - self.constraint.tolerance).amax(dim=1)


Objective = Constraint | Reward
_REGISTRY: dict[str, type[Objective]] = {}
_Class = TypeVar("_Class", bound=type)


def register(name: str | None = None) -> Callable[[_Class], _Class]:
    """Class decorator that makes a constraint or reward available under its class name (or `name`).

    Raises:
        TypeError: the class is neither a Constraint nor a Reward.
        ValueError: the name is taken by another class.
    """

    def decorate(cls: _Class) -> _Class:
        key = name or cls.__name__
        if not issubclass(cls, Constraint | Reward):
            raise TypeError(f"register expects a subclass of Constraint or Reward, got {cls.__name__}.")
        if _REGISTRY.get(key, cls) is not cls:
            raise ValueError(f"'{key}' is registered already, by {_REGISTRY[key].__module__}; choose another name.")
        _REGISTRY[key] = cls
        return cls

    return decorate


def get(name: str) -> type[Objective]:
    """Return the class registered as `name`.

    Raises:
        KeyError: nothing of that name; the message lists what exists.
    """
    if name not in _REGISTRY:
        raise KeyError(f"no objective is registered as '{name}'; registered are {', '.join(available())}.")
    return _REGISTRY[name]


def available(kind: type[Objective] | None = None) -> list[str]:
    """Return the registered names in alphabetical order, of `kind` (Constraint or Reward) only if one is given."""
    return sorted(key for key, cls in _REGISTRY.items() if kind is None or issubclass(cls, kind))


register()(RewardAtLeast)
register()(Feasibility)
