"""Constraints made of rewards, rewards made of constraints, and several rewards as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from constrained_diffusion.objectives.base import Constraint, Reward
from constrained_diffusion.objectives.measure import measure_constraint, measure_reward
from constrained_diffusion.objectives.registry import register


@register()
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
        return self.threshold - measure_reward(self.reward, clean)


@register()
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
        values = measure_constraint(self.constraint, clean)
        return -torch.relu(values - self.constraint.tolerance).amax(dim=1)


@register()
class WeightedSum(Reward):
    """r(x) = sum_k w_k r_k(x), with a gradient where all have one, and prompts where any needs them.

    In YAML:

        class_path: constrained_diffusion.objectives.converters.WeightedSum
        init_args:
          rewards:
            - class_path: constrained_diffusion.domains.images.pixels.Brightness
            - class_path: constrained_diffusion.domains.images.jpeg.JPEGCompressibility
              init_args: {quality: 80}
          weights: [1.0, 0.05]

    Args:
        rewards: the r_k, at least one.
        weights: the w_k, one for each reward in the same order; they also bring the rewards' units to one scale.

    Raises:
        ValueError: there is no reward, or not one weight for each.
    """

    def __init__(self, rewards: list[Reward], weights: list[float]) -> None:
        super().__init__()
        if not rewards or len(rewards) != len(weights):
            raise ValueError(
                "WeightedSum expects at least one reward and one weight for each, got "
                f"{len(rewards)} rewards and {len(weights)} weights."
            )
        self.rewards = nn.ModuleList(rewards)
        self.weights = list(weights)
        self.differentiable = all(reward.differentiable for reward in rewards)
        self.needs_prompts = any(reward.needs_prompts for reward in rewards)

    def forward(self, clean: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Return the weighted sum for `clean` `(B, *shape)`, shape `(B,)`.

        Args:
            clean: samples in the data's units.
            prompts: one string per row; only the rewards that need prompts get them.

        Raises:
            ValueError: a reward needs prompts, and there is not one per row.
        """
        total = clean.new_zeros(len(clean))
        for reward, weight in zip(self.rewards, self.weights, strict=True):
            total = total + weight * measure_reward(reward, clean, prompts)  # type: ignore[arg-type]
        return total
