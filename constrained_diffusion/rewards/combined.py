"""Several rewards as one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from constrained_diffusion.objectives import Reward, register


@register()
class WeightedSum(Reward):
    """r(x) = sum_k w_k r_k(x), with a gradient where all have one, and prompts where any needs them.

    In YAML:

        class_path: constrained_diffusion.rewards.WeightedSum
        init_args:
          rewards:
            - class_path: constrained_diffusion.rewards.Brightness
            - class_path: constrained_diffusion.rewards.JPEGCompressibility
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
            values: Tensor = reward(clean, prompts) if reward.needs_prompts else reward(clean)
            total = total + weight * values
        return total
