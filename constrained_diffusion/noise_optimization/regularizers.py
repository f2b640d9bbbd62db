"""What keeps optimised noise typical: the part of the objective that looks at z alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from constrained_diffusion.noise_optimization.concentration import chi_norm, prno


class Regularizer(ABC):
    """A term R(z) that is maximised together with the reward; subclass and write `__call__`.

    Args:
        weight: gamma, what R counts against the reward.

    Raises:
        ValueError: the weight is negative.
    """

    def __init__(self, weight: float = 1.0) -> None:
        if weight < 0:
            raise ValueError(f"a regulariser's weight (gamma) must be >= 0, got {weight}; 0 switches it off.")
        self.weight = weight

    @abstractmethod
    def __call__(self, noise: Tensor, bounds: Tensor) -> Tensor:
        """Return R(z), shape `(B,)`.

        Args:
            noise: z, `(B, n)`, float32.
            bounds: log p1 and log p2 of it in the natural and in q random orders, `(B, 1 + q, 2)`; with gradient.
        """


class PRNO(Regularizer):
    """The probability regulariser: the mean log bound over orders (D eq. 12).

    Args:
        weight: gamma; D takes 1 where reward and prompt contradict each other, 0.1 for learnt image rewards.
        natural_weight: what the order in which z lies counts; the authors' program has 1, eq. 12 has 0.
    """

    def __init__(self, weight: float = 1.0, natural_weight: float = 1.0) -> None:
        super().__init__(weight)
        self.natural_weight = natural_weight

    def __call__(self, noise: Tensor, bounds: Tensor) -> Tensor:
        return prno(bounds, self.natural_weight)


class ChiNorm(Regularizer):
    """ReNO's prior: the log density of the norm of z; it sees the norm alone."""

    def __init__(self, weight: float = 0.01) -> None:
        super().__init__(weight)

    def __call__(self, noise: Tensor, bounds: Tensor) -> Tensor:
        return chi_norm(noise)


class Unregularized(Regularizer):
    """No regulariser; P(z) is measured all the same."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def __call__(self, noise: Tensor, bounds: Tensor) -> Tensor:
        return torch.zeros(len(noise), device=noise.device)
