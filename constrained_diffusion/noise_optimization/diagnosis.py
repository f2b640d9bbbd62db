"""Why noise optimisation has stopped improving a sample: the stationary points of D appendix B."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.randomness import keyed_normal

Kind = Literal["I", "II", "III", "moving"]
PROBES = 0xB  # the stream of random directions


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


def diagnose(
    sample: Callable[[Tensor], Tensor],
    reward: Callable[[Tensor], Tensor],
    noise: Tensor,
    tolerance: float = 1e-2,
    probes: int = 8,
    seed: int = 0,
) -> list[Diagnosis]:
    """Tell the types of stationary points apart, one per row of `noise` `(B, *z_shape)`.

    Args:
        sample: M, differentiable; see `NoiseOptimizer`.
        reward: r, differentiable.
        noise: where the optimisation ended.
        tolerance: G1 and G2 count as zero below it, G1 G2 below `tolerance * ||G1|| * ||G2||`.
        probes: random directions for ||G2||: E ||v^T G2||^2 = ||G2||^2 for standard normal v.
        seed: keys them.
    """
    z = noise.detach().requires_grad_(True)
    with torch.enable_grad():
        clean = sample(z)
        at = clean.detach().requires_grad_(True)
        (g1,) = torch.autograd.grad(reward(at).sum(), at)
    (product,) = torch.autograd.grad(clean, z, g1, retain_graph=True)
    squared = torch.zeros(len(noise), dtype=noise.dtype, device=noise.device)
    for probe in range(probes):
        v = keyed_normal([(seed, PROBES, probe, row) for row in range(len(noise))], clean.shape[1:]).to(clean)
        (vjp,) = torch.autograd.grad(clean, z, v, retain_graph=True)
        squared = squared + vjp.flatten(1).square().sum(1) / probes
    norms = torch.stack([g1.flatten(1).norm(dim=1), squared.sqrt(), product.flatten(1).norm(dim=1)], 1)
    return [Diagnosis(_kind(a, b, c, tolerance), a, b, c) for a, b, c in norms.tolist()]


def _kind(reward_gradient: float, jacobian: float, product: float, tolerance: float) -> Kind:
    if reward_gradient < tolerance:
        return "I"
    if jacobian < tolerance:
        return "II"
    return "III" if product < tolerance * reward_gradient * jacobian else "moving"
