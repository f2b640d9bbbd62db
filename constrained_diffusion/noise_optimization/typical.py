"""How typical noise is: P(z) as a metric."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from constrained_diffusion.noise_optimization.concentration import log_bounds, log_probability
from constrained_diffusion.noise_optimization.orders import draw_orders


class NoiseProbability(Metric):
    """P(z) of many noises (D eq. 11): `compute` gives the median, the smallest, and the share at or above a floor.

    All noises are judged in the same orders.

    Args:
        k: length of a row.
        permutations: q, the random orders beside the natural one.
        floor: P(z) from which on a noise counts as typical.
        seed: keys the orders.

    Raises:
        ValueError: k does not divide the size of a noise, or nothing was measured.

    Example:
        >>> metric = NoiseProbability(permutations=3)
        >>> metric.update(torch.zeros(2, 1000))
        >>> metric.compute()["typical_rate"]
        0.0
    """

    full_state_update = False
    higher_is_better = True
    log_probabilities: list[Tensor]

    def __init__(self, k: int = 2, permutations: int = 100, floor: float = 0.01, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k, self.permutations, self.floor, self.seed = k, permutations, floor, seed
        self.add_state("log_probabilities", [], dist_reduce_fx="cat")

    def update(self, noise: Tensor) -> None:
        """Measure `noise`, z of shape `(B, ...)`."""
        flat = noise.detach().flatten(1).float()
        orders = draw_orders(flat.shape[1], self.k, self.permutations, (self.seed,)).to(flat.device)
        self.log_probabilities.append(log_probability(log_bounds(flat, orders, self.k)))

    def compute(self) -> dict[str, float]:
        """Return `median`, `smallest` and `typical_rate`, all in [0, 1]."""
        found = self.log_probabilities
        values = torch.cat(list(found)) if isinstance(found, list) and found else torch.as_tensor(found)
        if not values.numel():
            raise ValueError("NoiseProbability has seen no noise yet; call update first.")
        return {
            "median": math.exp(float(values.median())),
            "smallest": math.exp(float(values.min())),
            "typical_rate": float((values >= math.log(self.floor)).float().mean()),
        }
