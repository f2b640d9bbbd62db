"""How probable a noise vector is under the standard normal: P(z) and the regulariser PRNO (D section 3.2).

    p1(M) = min(2 exp(-m M^2 / (2 k)), 1)                                              (eq. 9; D prints max)
    p2(M) = min(2 exp(-m max(sqrt(1 + M) - 1 - sqrt(k / m), 0)^2 / 2), 1)              (eq. 10)
    P(z)  = min over orders of min(p1, p2), the order in which z lies always among them  (eq. 11)
    PRNO  = mean over random orders of (log p1 + log p2) + w (the same of the natural order)   (eq. 12)

M in p1 is the norm of the column means, in p2 the spectral norm of the second moments minus the identity: only first
and second moments are seen, and at small n hardly those. With k = 2, zeros have P(z) < 0.001 from n = 330 on, and by
its expected moments Gaussian noise scaled by 1.02 only from about n = 141,000 on, shifted by 0.01 only from about
n = 304,000 on (tests/noise_optimization/test_concentration.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constrained_diffusion.noise_optimization.orders import Moments, Orders, check_size, moments, natural_moments

_LN2 = math.log(2)


def log_bound_mean(mean: Tensor, m: int) -> Tensor:
    """Return log p1 for column means `(..., k)` of m rows, shape `(...)`, values <= 0 (eq. 9)."""
    k = mean.shape[-1]
    return (_LN2 - m * mean.square().sum(-1) / (2 * k)).clamp(max=0)


def log_bound_covariance(second: Tensor, m: int) -> Tensor:
    """Return log p2 for second moments `(..., k, k)` of m rows, shape `(...)`, values <= 0 (eq. 10)."""
    k = second.shape[-1]
    norm = spectral_norm(second - torch.eye(k, dtype=second.dtype, device=second.device))
    excess = ((1 + norm).sqrt() - 1 - math.sqrt(k / m)).clamp(min=0)
    return (_LN2 - m * excess.square() / 2).clamp(max=0)


def spectral_norm(symmetric: Tensor) -> Tensor:
    """Return the largest absolute eigenvalue of symmetric matrices `(..., k, k)`; in closed form for k <= 2.

    >>> spectral_norm(torch.tensor([[0.0, 3.0], [3.0, 0.0]]))
    tensor(3.)
    """
    k = symmetric.shape[-1]
    if k == 1:
        return symmetric[..., 0, 0].abs()
    if k > 2:
        eigenvalues: Tensor = torch.linalg.eigvalsh(symmetric)
        return eigenvalues.abs().amax(-1)
    a, b, d = symmetric[..., 0, 0], symmetric[..., 0, 1], symmetric[..., 1, 1]
    # The clamp keeps the gradient of the root finite where both eigenvalues are the same.
    radius = (((a - d) / 2).square() + b.square()).clamp(min=torch.finfo(symmetric.dtype).tiny).sqrt()
    return (a + d).abs() / 2 + radius


def log_bounds(noise: Tensor, orders: Orders, k: int) -> Tensor:
    """Return log p1 and log p2 of `noise` `(B, n)`: `(B, 1 + q, 2)`, the natural order first; differentiable.

    Raises:
        ValueError: k does not divide n.
    """
    check_size(noise.shape[1], k)
    m = noise.shape[1] // k
    natural, permuted = natural_moments(noise, k), moments(noise, orders, k)
    both = Moments(torch.cat([natural.mean, permuted.mean], 1), torch.cat([natural.second, permuted.second], 1))
    return torch.stack([log_bound_mean(both.mean, m), log_bound_covariance(both.second, m)], -1)


def log_probability(bounds: Tensor) -> Tensor:
    """Return log P(z), shape `(B,)`, values <= 0, from what `log_bounds` gives (eq. 11)."""
    return bounds.flatten(1).amin(1)


def prno(bounds: Tensor, natural_weight: float = 1.0) -> Tensor:
    """Return the regulariser, shape `(B,)`, values <= 0, to be maximised, from what `log_bounds` gives (eq. 12).

    Args:
        bounds: `(B, 1 + q, 2)`.
        natural_weight: weight of the natural order; eq. 12 has 0, the authors' program has 1. It is what sees that
            neighbouring variables move together, which random orders hide.
    """
    both = bounds.sum(-1)
    permuted = both[:, 1:].mean(1) if both.shape[1] > 1 else torch.zeros_like(both[:, 0])
    return permuted + natural_weight * both[:, 0]


def chi_norm(noise: Tensor) -> Tensor:
    """Return the log density of the norm of `noise` `(B, n)`, up to a constant: (n - 1) log ||z|| - ||z||^2 / 2.

    The prior of ReNO (Eyring et al. 2024, arXiv 2406.04312), shape `(B,)`; largest at ||z|| = sqrt(n - 1).
    """
    squared = noise.square().sum(1)
    tiny = torch.finfo(noise.dtype).tiny
    return (noise.shape[1] - 1) / 2 * squared.clamp(min=tiny).log() - squared / 2
