"""Rewards of the pixels' mean: the simplest ones, to try a method out.

Nothing is clamped: a sample outside [0, 1] is taken as it is, so that the gradient is the same everywhere.
"""

from __future__ import annotations

from torch import Tensor

from constrained_diffusion.objectives import Reward, register


def mean_pixel(clean: Tensor) -> Tensor:
    """Return the mean of all values of each row of `clean` `(B, *shape)`, shape `(B,)`, in the data's units."""
    return clean.flatten(1).mean(dim=1)


@register()
class Brightness(Reward):
    """The mean of all values of a sample, in the data's units; 1 is a white image."""

    def forward(self, clean: Tensor) -> Tensor:
        """Return the mean of `clean` `(B, *shape)`, shape `(B,)`."""
        return mean_pixel(clean)


@register()
class Darkness(Reward):
    """Minus the mean of all values of a sample, in the data's units; 0 is a black image."""

    def forward(self, clean: Tensor) -> Tensor:
        """Return minus the mean of `clean` `(B, *shape)`, shape `(B,)`."""
        return -mean_pixel(clean)


@register()
class Ink(Reward):
    """How much is drawn, in images whose ink is bright, as in MNIST: the mean pixel, or its nearness to a target.

    Args:
        target: the wanted mean pixel, in the data's units. The reward is then minus the squared distance to it, which
            has its best value, 0, at the target. For None, more ink is always better.
    """

    def __init__(self, target: float | None = None) -> None:
        super().__init__()
        self.target = target

    def forward(self, clean: Tensor) -> Tensor:
        """Return the mean of `clean` `(B, *shape)`, or `-(mean - target)^2`, shape `(B,)`."""
        ink = mean_pixel(clean)
        return ink if self.target is None else -(ink - self.target).square()
