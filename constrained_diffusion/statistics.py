"""How sure a measured share is: Clopper-Pearson bounds, and the violation rate that carries one.

With k successes among n independent trials the bounds invert the binomial tails exactly (Clopper and Pearson 1934):

| bound | definition |
|---|---|
| upper | the largest p with P(X <= k; n, p) >= 1 - confidence |
| lower | the smallest p with P(X >= k; n, p) >= 1 - confidence |
| interval | lower and upper, each at 1 - (1 - confidence) / 2 |
| inverse sampling | the same, where one tries until k successes are there, so that n is random |
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_HALVINGS = 50  # bisection steps: 2**-50 is 9e-16, the last that float64 still resolves just below 1


def clopper_pearson_upper(successes: int, n: int, confidence: float = 0.95) -> float:
    """Return the one-sided upper bound of a share, in [0, 1].

    Args:
        successes: k, how often it happened.
        n: of how many independent trials, at least 1.
        confidence: how often, over repeated trials, the bound is at or above the true share.

    Raises:
        ValueError: not 0 <= successes <= n with n >= 1, or the confidence is outside (0, 1).

    Example:
        >>> round(clopper_pearson_upper(0, 100), 6)  # 1 - 0.05 ** (1 / 100)
        0.029513
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"Clopper-Pearson bounds expect 0 <= successes <= n with n >= 1, got {successes} of {n}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, for example 0.95, got {confidence}.")
    if successes == n:
        return 1.0
    low, high, target = 0.0, 1.0, math.log1p(-confidence)
    log_choose = _log_binomial_coefficients(successes, n)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _log_cdf(log_choose, n, middle) >= target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def least_samples(allowed: float, confidence: float = 0.95) -> int | None:
    """Return how few samples, none of them violating, bound the rate by `allowed`; None where no number does.

    >>> least_samples(0.01), least_samples(1.0), least_samples(0.0)
    (299, 1, None)
    """
    if allowed <= 0:
        return None
    return 1 if allowed >= 1 else math.ceil(math.log1p(-confidence) / math.log1p(-allowed))


def clopper_pearson_lower(successes: int, n: int, confidence: float = 0.95) -> float:
    """Return the one-sided lower bound of a share, in [0, 1]; arguments and errors as for the upper one."""
    return 1.0 - clopper_pearson_upper(n - successes, n, confidence)


def clopper_pearson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval (lower, upper) of a share; arguments and errors as for the upper bound."""
    one_sided = 1 - (1 - confidence) / 2
    return clopper_pearson_lower(successes, n, one_sided), clopper_pearson_upper(successes, n, one_sided)


def inverse_sampling_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval (lower, upper) of a share that was tried until it had happened `successes` times.

    The number of trials is then the random one (negative binomial), and the last trial is a success by construction.
    The interval inverts its tails exactly: P(N <= trials) = P(Bin(trials, p) >= successes) gives the lower end,
    P(N >= trials) = P(Bin(trials - 1, p) <= successes - 1) the upper one.

    Args:
        successes: k, fixed beforehand, at least 1.
        trials: how many it took.
        confidence: how often, over repeated experiments, the interval holds the true share, at least.

    Raises:
        ValueError: not 1 <= successes <= trials, or the confidence is outside (0, 1).

    Example:
        >>> low, high = inverse_sampling_interval(10, 10)
        >>> round(low, 4), high
        (0.6915, 1.0)
    """
    if not 1 <= successes <= trials:
        raise ValueError(f"inverse sampling expects 1 <= successes <= trials, got {successes} of {trials}.")
    one_sided = 1 - (1 - confidence) / 2
    lower = clopper_pearson_lower(successes, trials, one_sided)
    return lower, clopper_pearson_upper(successes - 1, trials - 1, one_sided) if trials > 1 else 1.0


def _log_binomial_coefficients(k: int, n: int) -> Tensor:
    """Return log(n choose i) for i = 0 .. k, float64 of shape `(k + 1,)`."""
    i = torch.arange(k + 1, dtype=torch.float64, device="cpu")
    return math.lgamma(n + 1) - torch.lgamma(i + 1) - torch.lgamma(n - i + 1)


def _log_cdf(log_choose: Tensor, n: int, p: float) -> float:
    """Return log P(X <= k; n, p) for 0 < p < 1, where `log_choose` ends at i = k."""
    i = torch.arange(len(log_choose), dtype=torch.float64, device="cpu")
    return float(torch.logsumexp(log_choose + i * math.log(p) + (n - i) * math.log1p(-p), dim=0))


class ViolationRate(Metric):
    """The share of samples that violate, with its one-sided 95 % upper bound and n; summed over ranks.

    Example:
        >>> rate = ViolationRate()
        >>> rate.update(torch.tensor([True, False, False, False]))
        >>> rate.compute()["violation_rate"], rate.compute()["n"]
        (0.25, 4)
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    count: Tensor
    n: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, violating: Tensor) -> None:
        """Count one batch.

        Args:
            violating: `(B,)`, bool, True where a sample violates.

        Raises:
            TypeError: it is no such tensor.
        """
        if violating.dtype != torch.bool or violating.ndim != 1:
            raise TypeError(
                "ViolationRate expects a bool tensor of shape (B,), True where a sample violates; "
                f"got {violating.dtype} of shape {tuple(violating.shape)}; compare first, as in `g > tolerance`."
            )
        self.count = self.count + violating.sum()  # not in place: states that inference mode made refuse that
        self.n = self.n + len(violating)

    def compute(self) -> dict[str, float | int]:
        """Return {"violation_rate", "violation_upper_95", "n"} as Python numbers.

        Raises:
            ValueError: no sample was counted.
        """
        count, n = int(self.count), int(self.n)
        if n == 0:
            raise ValueError("a violation rate needs at least one sample, got none; call update before compute.")
        return {"violation_rate": count / n, "violation_upper_95": clopper_pearson_upper(count, n), "n": n}
