"""What the pretrained model would predict if it had never known the infeasible samples, estimated from its own samples.

With the training set x_1 .. x_N drawn from the pretrained model, the posterior weight of x_i given x_t is

    w_i = softmax_i(-||x_t - sqrt(abar_t) x_i||^2 / (2 (1 - abar_t)))

so that E[x_0 | x_t] and E[x_0 | x_t, feasible] can both be estimated (the stable target field of Xu et al. 2023,
arXiv 2302.00670). Their difference shifts the frozen model's x-hat towards p(x | feasible): the mass of what is
removed goes to all that remains in proportion, not to the nearest neighbour alone. At low noise the weights single out
one sample and the shift vanishes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.diffusion import NoiseSchedule


class Conditioned(NamedTuple):
    """The two things that conditioning on feasibility changes."""

    shift: Tensor  #: `(B, *shape)`, E[x_0 | x_t, feasible] - E[x_0 | x_t], in network units
    probability: Tensor  #: `(B,)`, p(feasible | x_t), in [0, 1]


def condition_on_feasible(
    noisy: Tensor, timesteps: Tensor, schedule: NoiseSchedule, samples: Tensor, feasible: Tensor
) -> Conditioned:
    """Estimate shift and probability from a bank of the pretrained model's samples.

    Args:
        noisy: x_t `(B, *shape)`.
        timesteps: `(B,)`.
        schedule: alpha-bar.
        samples: `(N, *shape)`, in network units.
        feasible: `(N,)`, 1.0 where a sample satisfies every constraint, else 0.0.
    """
    flat, bank = noisy.float().flatten(1), samples.float().flatten(1)
    signal, sigma = schedule.coefficients(timesteps, flat)
    # ||x_t - s x_i||^2 without the term that all i share
    distance = signal.square() * bank.square().sum(1) - 2 * signal * (flat @ bank.T)
    evidence = -distance / (2 * sigma.square())
    weight = evidence.softmax(1)
    probability = weight @ feasible
    # Normalised among the feasible ones by themselves, which holds where their share is too small for a quotient.
    inside = evidence.masked_fill(feasible == 0, -torch.inf).softmax(1).nan_to_num()
    shift = ((inside - weight) @ bank).reshape(noisy.shape)
    return Conditioned(shift.to(noisy.dtype), probability.clamp(max=1))
