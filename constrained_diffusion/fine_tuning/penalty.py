"""The penalty of eq. 14 and Algorithm 1 as pure functions.

| paper | code | shape |
|---|---|---|
| g | `values` | `(B,)` or `(B, m)`, negative means feasible |
| delta | `tolerance` | scalar or `(m,)` |
| C | `penalty_coefficient` | `(m,)` |
| P_k = mean relu(g_k - delta_k)^2 | `penalty` | `(m,)` |
| rho | `balance` | `(m,)` |
| lambda, c | `multiplier`, `augmentation` | `(m,)` |
| S_k = mean max_j(g_kj - delta_k) | `slack` | `(m,)` |
| c, r, n, I | `initial`, `growth_factor`, `every_n_steps`, `max_iterations` | |
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-6  #: smallest penalty that the balance divides by
CAP = 1e4  #: largest balance ratio


def violation(values: Tensor, tolerance: Tensor | float = 0.0) -> Tensor:
    """Return relu(g - delta), shape of `values`: 0 where feasible.

    >>> violation(torch.tensor([-1.0, 0.5]), 0.1)
    tensor([0.0000, 0.4000])
    """
    return torch.relu(values - tolerance)


def quadratic_penalty(values: Tensor, tolerance: Tensor | float = 0.0) -> Tensor:
    """Return relu(g - delta)^2 for each row and constraint, not yet averaged (P eq. 14, term 2)."""
    return violation(values, tolerance).square()


def mean_penalty(slack: Tensor, part: Tensor) -> Tensor:
    """Return relu(S) (2 s - stop_gradient(s)) for a part s of what adds up to S: the penalty of a limit on the mean.

    Summed over all parts it has the value relu(S)^2 and its gradient, 2 relu(S) dS, though no part knows the others.

    Args:
        slack: S, scalar, of all parts.
        part: s, scalar, with gradient.

    >>> part = torch.tensor([0.3, 0.2], requires_grad=True)
    >>> mean_penalty(part.sum().detach(), part).sum()
    tensor(0.2500, grad_fn=<SumBackward0>)
    """
    return violation(slack.detach()) * (2 * part - part.detach())


def balance(noise_error: Tensor, penalty: Tensor) -> Tensor:
    """Return Algorithm 1's ratio rho = E / max(P, 1e-6), capped and detached (P Alg. 1, line 5).

    Attached, the gradient of E / P * P is that of E alone: the penalty cancels and nothing is learnt.
    """
    return (noise_error / penalty.clamp(min=FLOOR)).clamp(max=CAP).detach()


def penalty_active(penalty: Tensor, stop_below: Tensor) -> Tensor:
    """Return 1.0 where the penalty acts and 0.0 where it is released because P <= tau, shape `(m,)`, detached."""
    return (penalty > stop_below).to(penalty.dtype).detach()


def multiplier_weight(multiplier: Tensor, augmentation: Tensor, slack: Tensor) -> Tensor:
    """Return relu(lambda + c S), what multiplies the gradient of S, shape `(m,)`, detached.

    With c = 0 the gradient of the Lagrangian, else that of the augmented Lagrangian's
    (relu(lambda + c S)^2 - lambda^2) / 2 c (Nocedal and Wright 2006, section 17.4).

    >>> multiplier_weight(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([-0.25]))
    tensor([0.5000])
    """
    return torch.relu(multiplier + augmentation * slack).detach()


def geometric_growth(initial: float, growth_factor: float, step: int, every_n_steps: int, max_iterations: int) -> float:
    """Return C = c * r^floor(min(i, I) / n) after `step` optimiser steps (P Alg. 1, line 5).

    >>> round(geometric_growth(0.05, 1.2, step=25, every_n_steps=10, max_iterations=50), 4)
    0.072
    """
    return float(initial * growth_factor ** (min(step, max_iterations) // every_n_steps))
