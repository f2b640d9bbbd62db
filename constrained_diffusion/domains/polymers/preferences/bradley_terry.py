"""Bradley-Terry: latent merits of items by maximum likelihood, from pairs of which one was preferred.

| paper (P section 4.3) | code | shape |
|---|---|---|
| g_i, merit of item i | `exp(log_merits[i])` | |
| s_i, its logarithm | `log_merits` | `(n,)` |
| y, 1 where i is preferred to j, 0 where j is, 0.5 for a tie | `outcomes` | `(m,)` |

The likelihood of an outcome is y log g_i + (1 - y) log g_j - log(g_i + g_j); P prints the second term with the other
sign, which makes no probability. In logarithms that is y log sigmoid(s_i - s_j) + (1 - y) log sigmoid(s_j - s_i).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

STEPS, ENOUGH = 100, 1e-10  #: of Newton; it ends where no merit moves by more


class Merits(NamedTuple):
    """What the outcomes of a table say of its items."""

    log_merits: Tensor  #: s `(n,)`, float64, of mean 0
    standard_errors: Tensor  #: `(n,)`, float64, of the log merits, from the curvature of the likelihood at its top
    log_likelihood: float  #: of all outcomes, at the top, without the regularisation


def log_likelihood(first: Tensor, second: Tensor, outcomes: Tensor) -> Tensor:
    """Return the log-likelihood of each outcome, `(m,)`, at most 0.

    Args:
        first: log merits of the first of each pair, `(m,)`.
        second: those of the second, `(m,)`.
        outcomes: `(m,)`, 1 where the first is preferred, 0 where the second is, 0.5 for a tie.

    >>> log_likelihood(torch.zeros(3), torch.zeros(3), torch.tensor([1.0, 0.0, 0.5])).exp()
    tensor([0.5000, 0.5000, 0.5000])
    """
    margin = first - second
    return outcomes * logsigmoid(margin) + (1 - outcomes) * logsigmoid(-margin)


def fit_merits(pairs: Tensor, outcomes: Tensor, count: int, regularization: float = 1e-3) -> Merits:
    """Return the most likely log merits, by Newton's method in float64.

    Args:
        pairs: `(m, 2)`, items by number, two different ones in each row.
        outcomes: `(m,)`, 1, 0.5 or 0; see above.
        count: n, of items.
        regularization: of the log merits: minus half of it times their squares is added to the log-likelihood, without
            which an item that won all its comparisons has a merit without bound. 0 for none.

    Raises:
        ValueError: tensors of other shapes, an item compared with itself or not there, another outcome, a negative
            regularisation, items that no chain of comparisons connects, whose merits no table could compare, or,
            without regularisation, items that won, or lost, all comparisons with the rest (Ford 1957).
    """
    _check(pairs, outcomes, count, regularization)
    first, second = pairs[:, 0], pairs[:, 1]
    outcomes, merits = outcomes.double(), torch.zeros(count, dtype=torch.float64)
    # The likelihood knows differences alone; where nothing else does, this fixes the mean.
    level = torch.full((count, count), 1 / count, dtype=torch.float64)
    hessian = level
    for _ in range(STEPS):
        chance = torch.sigmoid(merits[first] - merits[second])
        surprise, spread = outcomes - chance, chance * (1 - chance)
        gradient = torch.zeros(count, dtype=torch.float64).index_add(0, first, surprise).index_add(0, second, -surprise)
        gradient = gradient - regularization * merits
        hessian = level.clone()
        hessian.index_put_((first, second), -spread, accumulate=True)
        hessian.index_put_((second, first), -spread, accumulate=True)
        own = torch.zeros(count, dtype=torch.float64).index_add(0, first, spread).index_add(0, second, spread)
        hessian.diagonal().add_(own + regularization)
        step: Tensor = torch.linalg.solve(hessian, gradient)
        merits = merits + step * min(1.0, 2.0 / float(step.abs().max().clamp(min=1e-300)))  # never far at once
        if step.abs().max() < ENOUGH:
            break
    merits = merits - merits.mean()
    variance = (torch.linalg.inv(hessian) - level / (1 + regularization)).diagonal().clamp(min=0)
    likelihood = float(log_likelihood(merits[first], merits[second], outcomes).sum())
    return Merits(merits, variance.sqrt(), likelihood)


def components(pairs: Tensor, count: int) -> Tensor:
    """Return the smallest item that each item is connected with by comparisons, `(count,)`, int64.

    >>> components(torch.tensor([[0, 1], [2, 3], [3, 4]]), 5)
    tensor([0, 0, 2, 2, 2])
    """
    label = torch.arange(count)
    while True:
        least = label[pairs].amin(1)
        lower = label.scatter_reduce(0, pairs.flatten(), least.repeat_interleave(2), "amin")
        lower = lower[lower]
        if torch.equal(lower, label):
            return label
        label = lower


def reached(arrows: Tensor, count: int) -> Tensor:
    """Return whether each item can be reached from item 0 along arrows `(m, 2)`, `(count,)`, bool.

    >>> reached(torch.tensor([[0, 1], [1, 2], [3, 2]]), 4)
    tensor([ True,  True,  True, False])
    """
    found = torch.arange(count) == 0
    while True:
        more = found.clone()
        more[arrows[found[arrows[:, 0]], 1]] = True
        if torch.equal(more, found):
            return found
        found = more


def _check(pairs: Tensor, outcomes: Tensor, count: int, regularization: float) -> None:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or outcomes.shape != pairs.shape[:1] or not len(pairs):
        raise ValueError(
            "expected pairs (m, 2) and an outcome (m,) for each, at least one, got shapes "
            f"{tuple(pairs.shape)} and {tuple(outcomes.shape)}."
        )
    if pairs.min() < 0 or pairs.max() >= count or (pairs[:, 0] == pairs[:, 1]).any():
        raise ValueError(f"expected two different items of 0 .. {count - 1} in each pair.")
    if not torch.isin(outcomes.double(), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).all():
        raise ValueError("expected outcomes of 1 (the first is preferred), 0 (the second) or 0.5 (a tie).")
    if not 0 <= regularization < float("inf"):
        raise ValueError(f"regularization is 0 or more, got {regularization}.")
    label = components(pairs, count)
    if label.any():
        stray = int(label.nonzero()[0])
        raise ValueError(
            f"expected a chain of comparisons between any two items, but {len(label.unique())} groups share none: item "
            f"{stray} is never compared, not even through others, with item 0; add such pairs, or leave a group out."
        )
    if not regularization:
        wins = torch.cat([pairs[outcomes > 0], pairs[outcomes < 1].flip(1)])  # a tie is an arrow either way
        bounded = reached(wins, count) & reached(wins.flip(1), count)
        if not bounded.all():
            raise ValueError(
                "expected merits that have a most likely value, but some items won, or lost, all comparisons with the "
                f"rest, item {int((~bounded).nonzero()[0])} among them or against them; set a regularization above 0."
            )
