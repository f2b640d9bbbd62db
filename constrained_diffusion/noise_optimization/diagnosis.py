"""Why noise optimisation has stopped improving a sample: the stationary points of D appendix B.

There ||G1|| and ||G2|| are 0 or not. Here they are compared with what they are at fresh noise, and their product with
what it would be in a direction drawn at random, so that no unit of reward or sample decides, nor how many numbers a
sample has:

    I     ||G1|| <= tolerance * rms ||G1|| at fresh noise
    II    ||G2|| <= tolerance * rms ||G2|| at fresh noise
    III   ||G1 G2|| <= tolerance * ||G1|| ||G2|| / sqrt(d)   (E ||u^T G2||^2 = ||G2||^2 / d for a random unit vector u)

| paper | code | shape |
|---|---|---|
| G1 = dr/dx | `Norms.reward_gradient`, its norm | `(B,)` |
| G2 = dM/dz | `Norms.jacobian`, its Frobenius norm | `(B,)` |
| G1 G2 = dr(M(z))/dz | `Norms.product`, its norm | `(B,)` |
| d, the numbers of a sample | `clean[0].numel()` | |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.noise_optimization.gradients import vjp
from constrained_diffusion.noise_optimization.problem import Problem, check_per_row, checked_problem
from constrained_diffusion.runtime.randomness import keyed_normal

Kind = Literal["I", "II", "III", "moving"]
PROBES, FRESH = 0xB, 0xBF  # the streams of random directions and of fresh noise


class Diagnosis(NamedTuple):
    """The three norms of one sample, and what they say.

    "I": the reward is flat at the sample. "II": the sample hardly moves with the noise, as on the edge of what the
    model can draw. "III": both are alive, but the reward's gradient is orthogonal to all directions in which the
    sample can move. "moving": it is no stationary point.
    """

    kind: Kind
    reward_gradient: float  #: ||G1|| = ||dr/dx||
    jacobian: float  #: ||G2||, Frobenius norm of dM/dz, estimated
    product: float  #: ||G1 G2|| = ||dr(M(z))/dz||


class Norms(NamedTuple):
    """The same norms of a batch, `(B,)` each."""

    reward_gradient: Tensor
    jacobian: Tensor
    product: Tensor


def diagnose(
    sample: Callable[..., Tensor],
    reward: Callable[..., Tensor],
    noise: Tensor,
    tolerance: float = 1e-2,
    probes: int = 8,
    seed: int = 0,
    context: Sequence[Any] | None = None,
    fresh: int = 2,
) -> list[Diagnosis]:
    """Tell the types of stationary points apart, one per row of `noise` `(B, *z_shape)`.

    A row's diagnosis does not depend on its neighbours nor on its place: all rows share the random numbers.

    Args:
        sample: M, z `(B, *z_shape)` -> samples `(B, *shape)`; see `NoiseOptimizer`.
        reward: r, samples -> `(B,)`, differentiable where it is not constant.
        noise: where the optimisation ended.
        tolerance: what share of its reference counts as zero. A reward that is flat everywhere is of type I, a sample
            that is the same for every noise of type II.
        probes: random directions for ||G2||: E ||v^T G2||^2 = ||G2||^2 for standard normal v.
        seed: keys them and the fresh noise.
        context: one entry per row, handed to `sample` and `reward`.
        fresh: standard normal noises at which the references are taken; each costs as much as the diagnosed noise.

    Raises:
        ValueError: `probes` or `fresh` is below 1, there are not as many contexts or samples as rows, the reward's
            shape is wrong, or it is not finite.
        TypeError: `sample` or `reward` returns no tensor.
    """
    if probes < 1 or fresh < 1:
        raise ValueError(f"expected probes >= 1 and fresh >= 1, got {probes} and {fresh}.")
    check_per_row("context", context, len(noise))
    problem = checked_problem(sample, reward, context, [(seed,)] * len(noise))
    found, size = _norms(problem, noise, probes, seed)
    draws = keyed_normal([(seed, FRESH, draw) for draw in range(fresh)], noise.shape[1:]).to(noise)
    there = [_norms(problem, z.expand_as(noise).contiguous(), probes, seed)[0] for z in draws]
    references = [torch.stack(norms).square().mean(0).sqrt() for norms in list(zip(*there, strict=True))[:2]]
    references.append(found.reward_gradient * found.jacobian / math.sqrt(size))
    still = torch.stack([a <= tolerance * b for a, b in zip(found, references, strict=True)], 1)
    kinds: tuple[Kind, ...] = ("I", "II", "III")
    return [
        Diagnosis(next((kind for kind, holds in zip(kinds, row, strict=True) if holds), "moving"), *norms)
        for row, norms in zip(still.tolist(), torch.stack(found, 1).tolist(), strict=True)
    ]


def _norms(problem: Problem, noise: Tensor, probes: int, seed: int) -> tuple[Norms, int]:
    """Return the norms at `noise` and d; what has no graph is constant, and its derivative 0."""
    z = noise.detach().requires_grad_(True)
    with torch.enable_grad():
        clean = problem.sample(z, problem.context)
        at = clean.detach().requires_grad_(True)
        reward = problem.reward(at, problem.context)
    slope = vjp(reward, at, torch.ones_like(reward))
    slope = torch.zeros_like(at) if slope is None else slope
    directions = keyed_normal([(seed, PROBES, probe) for probe in range(probes)], clean.shape[1:]).to(clean)
    rows = [_row_norms(vjp(clean, z, v.expand_as(clean), keep_graph=True), z) for v in directions]
    jacobian = torch.stack(rows).square().mean(0).sqrt()
    product = _row_norms(vjp(clean, z, slope), z)
    return Norms(_row_norms(slope, at), jacobian, product), clean[0].numel()


def _row_norms(gradient: Tensor | None, like: Tensor) -> Tensor:
    norms: Tensor = (torch.zeros_like(like) if gradient is None else gradient).flatten(1).norm(dim=1)
    return norms
