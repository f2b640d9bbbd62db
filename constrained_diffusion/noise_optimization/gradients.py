"""Gradients of r(M(z)) with respect to z, of which r or both need not be differentiable (D section 4).

All estimate, up to a constant, the gradient that is *ascended*; a batch row never sees another row.

    Exact     d r(M(z)) / dz
    ZOSGD     1/q sum_i (r(M(z + mu xi_i)) - r(M(z))) xi_i / mu
    Hybrid1   H = 1/q sum_i (r(x + mu xi_i) - r(x)) xi_i / mu,   then d <H, M(z)> / dz          (eq. 13)
    Hybrid2   H = 1/q sum_i (r(x_i) - r(x)) (x_i - x) / mu^2, x_i = M(z + mu xi_i), then the same  (eq. 14, 18)

Eq. 13 and 14 leave the scale open; divided by powers of mu as here, ZOSGD and Hybrid1 are unbiased for the smoothed
reward, and mu can be changed without changing the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from inspect import ismethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.distributed import sum_over_ranks
from constrained_diffusion.precision import single
from constrained_diffusion.randomness import keyed_normal

PERTURBATION = 0xD0  # the stream of perturbations, apart from those of noises and orders
DETACHED_SAMPLE = (
    "the sample gives no gradient with respect to z; do not detach or round in the sample map, or choose the estimator "
    "ZOSGD, which needs no gradient of it."
)
Key = tuple[int, ...]


class Problem(NamedTuple):
    """r(M(z)) for one batch; both maps take a second argument, the rows' contexts repeated as z is."""

    sample: Callable[[Tensor, list[Any]], Tensor]  #: z `(N, ...)` -> x `(N, *shape)`
    reward: Callable[[Tensor, list[Any]], Tensor]  #: x -> `(N,)`
    context: list[Any]  #: one per row, such as a prompt
    keys: list[Key]  #: one per row, for what is drawn


class Estimate(NamedTuple):
    """One evaluation of a batch."""

    clean: Tensor  #: `(B, *shape)`, M(z), without graph
    reward: Tensor  #: `(B,)`, without graph
    gradient: Tensor  #: shape of z; to be ascended


def checked_problem(
    sample: Callable[..., Tensor], reward: Callable[..., Tensor], context: Sequence[Any] | None, keys: list[Key]
) -> Problem:
    """Return the problem of two maps that take contexts only where there are some; what they return is checked.

    Its maps raise TypeError where no tensor is returned, and ValueError where there is not one sample per row of z, not
    one reward per sample, or a reward that is not finite.
    """

    def call(function: Callable[..., Tensor], values: Tensor, contexts: list[Any], kind: str) -> Tensor:
        found: Any = function(values) if context is None else function(values, contexts)
        if not isinstance(found, Tensor):
            raise TypeError(
                f"a {kind} must return a tensor of one entry per row, but {name_of(function)} returned a "
                f"{type(found).__name__}; stack the entries with torch.stack, or torch.tensor where they are numbers."
            )
        return found

    def checked_sample(noise: Tensor, contexts: list[Any]) -> Tensor:
        clean = call(sample, noise, contexts, "sample map")
        if clean.shape[:1] != noise.shape[:1]:
            raise ValueError(
                f"a sample map must return one sample per row of z, {len(noise)}, but {name_of(sample)} returned shape "
                f"{tuple(clean.shape)}; leave the first side as it is."
            )
        return clean

    def checked_reward(clean: Tensor, contexts: list[Any]) -> Tensor:
        values = single(call(reward, clean, contexts, "reward"))  # differences of verdicts, too, are taken below
        if values.shape != clean.shape[:1]:
            raise ValueError(
                f"a reward must return one number per sample, shape {tuple(clean.shape[:1])}, but {name_of(reward)} "
                f"returned {tuple(values.shape)}; average or sum over the rest."
            )
        if not bool(values.isfinite().all()):
            raise ValueError(
                f"{name_of(reward)} returned {first_not_finite(values)} for a sample; a reward must be finite: bound "
                "it, or floor its logarithm."
            )
        return values

    return Problem(checked_sample, checked_reward, list(context) if context is not None else [None] * len(keys), keys)


def name_of(function: Any) -> str:
    """Return what messages call a map: its `__name__`, a method's with its class, or else the name of its class.

    >>> name_of(len), name_of(partial(len)), name_of(Exact())
    ('len', 'len', 'Exact')
    """
    function = function.func if isinstance(function, partial) else function
    name: str = function.__qualname__ if ismethod(function) else getattr(function, "__name__", type(function).__name__)
    return name


def first_not_finite(values: Tensor) -> float:
    """Return the first value that is infinite or not a number; there must be one."""
    return float(values.detach()[~values.isfinite()][0])


def check_per_row(name: str, given: Sequence[Any] | None, rows: int) -> None:
    """Raise ValueError where `given` is not None and has not one entry per row."""
    if given is not None and len(given) != rows:
        raise ValueError(f"{name} needs one entry per row of the noise, {rows}, but has {len(given)}.")


def vjp(values: Tensor, at: Tensor, weights: Tensor, keep_graph: bool = False) -> Tensor | None:
    """Return d <weights, values> / d at, shape of `at`; None where `values` does not depend on it."""
    if not values.requires_grad:
        return None
    found: Tensor | None = torch.autograd.grad(values, at, weights, retain_graph=keep_graph, allow_unused=True)[0]
    return found


class GradientEstimator(ABC):
    """One way to get the gradient; subclass and write `__call__`.

    Class attributes:
        needs_gradient: whether the reward must be differentiable.
    """

    needs_gradient: bool = False

    @abstractmethod
    def __call__(self, problem: Problem, noise: Tensor) -> Estimate:
        """Evaluate the batch `noise` `(B, ...)` and estimate its gradient."""


def check_differentiable(reward: Any, estimator: GradientEstimator) -> None:
    """Raise TypeError where the estimator needs a gradient that the reward, by its own word, does not have."""
    if estimator.needs_gradient and not getattr(reward, "differentiable", True):
        raise TypeError(
            f"{name_of(reward)} is not differentiable, and {type(estimator).__name__} needs its gradient; "
            "choose the estimator Hybrid2, Hybrid1 or ZOSGD."
        )


class Exact(GradientEstimator):
    """Backpropagation through reward and sampler."""

    needs_gradient = True

    def __call__(self, problem: Problem, noise: Tensor) -> Estimate:
        """Raise TypeError where the reward or the sample has no gradient."""
        z, clean = _traced(problem, noise)
        with torch.enable_grad():
            reward = problem.reward(clean, problem.context)
        slope = vjp(reward, clean, torch.ones_like(reward))
        if slope is None:
            raise TypeError(
                "the reward gives no gradient with respect to the sample, though it is declared differentiable; "
                "set differentiable = False and estimate its gradient (Hybrid2, Hybrid1, ZOSGD), or do not detach."
            )
        return Estimate(clean.detach(), reward.detach(), _pulled_back(slope, clean, z))


class Perturbed(GradientEstimator):
    """Base of the estimators that perturb.

    Args:
        perturbations: q, per sample.
        mu: length of a perturbation; D takes 0.01, and 0.02 for Hybrid2.
        normalize: scale the estimate H of each sample to norm 1, as the authors' program does.
        batch_size: how many perturbed samples are evaluated at once, all by default; at least one per row of the batch.
        shard: split the perturbations of every sample over the ranks, which then all hold the same samples.

    Raises:
        ValueError: q or the batch size below 1, or mu not positive.
    """

    def __init__(
        self,
        perturbations: int = 4,
        mu: float = 0.01,
        normalize: bool = False,
        batch_size: int | None = None,
        shard: bool = False,
    ) -> None:
        if perturbations < 1 or mu <= 0 or (batch_size is not None and batch_size < 1):
            raise ValueError(
                f"expected perturbations >= 1, mu > 0 and batch_size >= 1; got {perturbations}, {mu}, {batch_size}."
            )
        self.perturbations, self.mu, self.normalize = perturbations, mu, normalize
        self.batch_size, self.shard = batch_size, shard

    def _average(
        self, problem: Problem, perturbed: Tensor, result: Tensor, term: Callable[[Tensor, Problem], Tensor]
    ) -> Tensor:
        """Return 1/q sum_i term(xi_i), shape of `result`; xi is drawn per row and perturbation.

        Args:
            problem: the batch.
            perturbed: a tensor of the shape of one xi for the batch, `(B, ...)`.
            result: one of the shape of one term for the batch.
            term: maps xi of p perturbations, `(p * B, ...)`, perturbation by perturbation, and the problem repeated p
                times, to `(p * B, ...)`.
        """
        on = self.shard and torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if on else (0, 1)
        mine = list(range(rank, self.perturbations, world))
        at_once = max(1, (self.batch_size or len(result) * self.perturbations) // len(result))
        total = torch.zeros_like(result)
        for start in range(0, len(mine), at_once):
            part = mine[start : start + at_once]
            keys = [(PERTURBATION, *key, i) for i in part for key in problem.keys]
            xi = keyed_normal(keys, perturbed.shape[1:]).to(perturbed)
            repeated = problem._replace(context=problem.context * len(part), keys=keys)
            total = total + term(xi, repeated).view(len(part), *result.shape).sum(0)
        total = sum_over_ranks(total) if on else total
        return total / self.perturbations

    def _scaled(self, estimate: Tensor) -> Tensor:
        if not self.normalize:
            return estimate
        return estimate / _per_row(estimate.flatten(1).norm(dim=1).clamp(min=1e-12), estimate)


class ZOSGD(Perturbed):
    """Zeroth-order gradient in z: neither sampler nor reward is differentiated (Nesterov and Spokoiny 2017)."""

    def __init__(self, perturbations: int = 16, mu: float = 0.01, **kwargs: Any) -> None:
        super().__init__(perturbations, mu, **kwargs)

    @torch.no_grad()
    def __call__(self, problem: Problem, noise: Tensor) -> Estimate:
        clean = problem.sample(noise, problem.context)
        reward = problem.reward(clean, problem.context)

        def term(xi: Tensor, repeated: Problem) -> Tensor:
            z = _repeat(noise, xi) + self.mu * xi
            values = repeated.reward(repeated.sample(z, repeated.context), repeated.context)
            return _per_row((values - _repeat(reward, values)) / self.mu, xi) * xi

        return Estimate(clean, reward, self._scaled(self._average(problem, noise, noise, term)))


class Hybrid1(Perturbed):
    """The reward's gradient from perturbed samples, the sampler's by backpropagation (D eq. 13)."""

    def __init__(self, perturbations: int = 8, mu: float = 0.01, **kwargs: Any) -> None:
        super().__init__(perturbations, mu, **kwargs)

    def __call__(self, problem: Problem, noise: Tensor) -> Estimate:
        def estimate(clean: Tensor, reward: Tensor) -> Tensor:
            def term(xi: Tensor, repeated: Problem) -> Tensor:
                values = repeated.reward(_repeat(clean, xi) + self.mu * xi, repeated.context)
                return _per_row((values - _repeat(reward, values)) / self.mu, xi) * xi

            return self._average(problem, clean, clean, term)

        return _through_sampler(problem, noise, lambda x, r: self._scaled(estimate(x, r)))


class Hybrid2(Perturbed):
    """The same with samples of perturbed noise, so that the reward is asked about generated samples only (D eq. 14)."""

    def __init__(self, perturbations: int = 4, mu: float = 0.02, **kwargs: Any) -> None:
        super().__init__(perturbations, mu, **kwargs)

    def __call__(self, problem: Problem, noise: Tensor) -> Estimate:
        def estimate(clean: Tensor, reward: Tensor) -> Tensor:
            def term(xi: Tensor, repeated: Problem) -> Tensor:
                samples = repeated.sample(_repeat(noise, xi) + self.mu * xi, repeated.context)
                gain = repeated.reward(samples, repeated.context) - _repeat(reward, samples)
                return _per_row(gain / self.mu**2, samples) * (samples - _repeat(clean, samples))

            return self._average(problem, noise, clean, term)

        return _through_sampler(problem, noise, lambda x, r: self._scaled(estimate(x, r)))


def _through_sampler(problem: Problem, noise: Tensor, estimate: Callable[[Tensor, Tensor], Tensor]) -> Estimate:
    """Return the gradient of <H, M(z)>, H held fixed: the surrogate of D appendix D.1, which is ascended."""
    z, clean = _traced(problem, noise)
    with torch.no_grad():
        reward = problem.reward(clean.detach(), problem.context)
        direction = estimate(clean.detach(), reward)
    return Estimate(clean.detach(), reward, _pulled_back(direction, clean, z))


def _traced(problem: Problem, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return z, which requires a gradient, and M(z) with its graph."""
    z = noise.detach().requires_grad_(True)
    with torch.enable_grad():
        clean = problem.sample(z, problem.context)
    if not clean.requires_grad:
        raise TypeError(DETACHED_SAMPLE)
    return z, clean


def _pulled_back(direction: Tensor, clean: Tensor, z: Tensor) -> Tensor:
    gradient = vjp(clean, z, direction)
    if gradient is None:  # a graph there is, of the sampler's own weights
        raise TypeError(DETACHED_SAMPLE)
    return gradient


def _repeat(rows: Tensor, like: Tensor) -> Tensor:
    return rows.repeat(len(like) // len(rows), *(1,) * (rows.ndim - 1))


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1)).to(like.dtype)
