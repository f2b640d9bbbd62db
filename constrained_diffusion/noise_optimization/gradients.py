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
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.noise_optimization.problem import Problem, name_of
from constrained_diffusion.runtime.randomness import keyed_normal
from constrained_diffusion.runtime.ranks import sum_over_ranks

PERTURBATION = 0xD0  # the stream of perturbations, apart from those of noises and orders
DETACHED_SAMPLE = (
    "the sample gives no gradient with respect to z; do not detach or round in the sample map, or choose the estimator "
    "ZOSGD, which needs no gradient of it."
)


class Estimate(NamedTuple):
    """One evaluation of a batch."""

    clean: Tensor  #: `(B, *shape)`, M(z), without graph
    reward: Tensor  #: `(B,)`, without graph
    gradient: Tensor  #: shape of z; to be ascended


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

    @property
    def _shares(self) -> bool:
        return self.shard and torch.distributed.is_available() and torch.distributed.is_initialized()

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
        on = self._shares
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

    def _agreed(self, estimate: Estimate) -> Estimate:
        """Return the estimate with the mean reward and gradient of the ranks that share its perturbations.

        They differ by rounding alone, but a rank that stopped a step earlier would leave the others waiting for it.
        """
        if not self._shares:
            return estimate
        reward, gradient = (sum_over_ranks(part) / torch.distributed.get_world_size() for part in estimate[1:])
        return Estimate(estimate.clean, reward, gradient)

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

        return self._agreed(Estimate(clean, reward, self._scaled(self._average(problem, noise, noise, term))))


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

        return self._agreed(_through_sampler(problem, noise, lambda x, r: self._scaled(estimate(x, r))))


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

        return self._agreed(_through_sampler(problem, noise, lambda x, r: self._scaled(estimate(x, r))))


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
