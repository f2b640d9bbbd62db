"""What noise optimisation returns: per sample, what was found and how it got there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

StopReason = Literal["steps", "reward", "probability", "seconds", "none"]


@dataclass
class Record:
    """One optimised sample.

    `sample` and `noise` are the best iterate inside the typical set (P(z) >= `typical_probability`); the first one
    where none was. Histories have one entry per evaluation, the start first; probabilities are logarithms.
    """

    sample: Tensor  #: `(*shape)`
    noise: Tensor  #: `(*z_shape)`
    start: Tensor  #: `(*shape)`, the sample before optimisation
    rewards: list[float] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    best_step: int = 0
    stopped: StopReason = "none"  #: "none" while it runs

    @property
    def reward(self) -> float:
        """Reward of the returned sample."""
        return self.rewards[self.best_step]

    @property
    def probability(self) -> float:
        """P(z) of the returned noise."""
        return math.exp(self.log_probabilities[self.best_step])

    def state(self) -> dict[str, Any]:
        """Return all of it as a dictionary that `torch.load(weights_only=True)` reads."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Record:
        """Return the record of which `state` is the state, its tensors on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()
        }
        return cls(**moved)

    def summary(self) -> dict[str, Any]:
        """Return what one line of a table says: no tensors, numbers of finite length."""
        return {
            "reward_before": self.rewards[0],
            "reward": self.reward,
            "probability_before": math.exp(self.log_probabilities[0]),
            "probability": self.probability,
            "best_step": self.best_step,
            "steps": len(self.rewards) - 1,
            "stopped": self.stopped,
        }


def stack(records: list[Record], name: str) -> Tensor:
    """Return one tensor field of all records, `(B, ...)`."""
    return torch.stack([getattr(record, name) for record in records])
