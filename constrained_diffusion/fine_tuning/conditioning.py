"""What the pretrained model would predict if it had never known the infeasible samples, estimated from its own samples.

With the training set x_1 .. x_N drawn from the pretrained model, the posterior weight of x_i given x_t is

    w_i = softmax_i(-||x_t - sqrt(abar_t) x_i||^2 / (2 (1 - abar_t)))

so that E[x_0 | x_t] and E[x_0 | x_t, feasible] can both be estimated (the stable target field of Xu et al. 2023,
arXiv 2302.00670). Their difference shifts the frozen model's x-hat towards p(x | feasible): the mass of what is
removed goes to all that remains in proportion, not to the nearest neighbour alone.

From some noise level on, what a noisy sample will become is still open. There the estimate leaves out the sample that
x_t was made from, which would win every comparison though a fresh x_t has no such twin, and it holds whatever that
sample was. At lower noise the weights single out one sample, the shift vanishes, and rows count by p(feasible | x_t).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.runtime.precision import without_autocast


class Conditioned(NamedTuple):
    """The two things that conditioning on feasibility changes."""

    shift: Tensor  #: `(B, *shape)`, E[x_0 | x_t, feasible] - E[x_0 | x_t], in network units
    weight: Tensor  #: `(B,)`, what the row counts: p(feasible | x_t), in [0, 1], and 1 where all is open


def condition_on_feasible(
    noisy: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    samples: Tensor,
    feasible: Tensor,
    rows: Tensor | None = None,
    open_from: int | None = None,
) -> Conditioned:
    """Estimate shift and weight from a bank of the pretrained model's samples.

    Args:
        noisy: x_t `(B, *shape)`.
        timesteps: `(B,)`.
        schedule: alpha-bar.
        samples: `(N, *shape)`, in network units.
        feasible: `(N,)`, 1.0 where a sample satisfies every constraint, else 0.0.
        rows: `(B,)`, the place in the bank of the sample that each x_t was made from, where it is there.
        open_from: the timestep from which on a sample is still open; None: never.
    """
    flat, bank = noisy.float().flatten(1), samples.float().flatten(1)
    signal, sigma = schedule.coefficients(timesteps, flat)
    # ||x_t - s x_i||^2 without the term that all i share
    with without_autocast(noisy):  # the rows of the bank differ by less than half precision resolves
        norms = torch.einsum("nd,nd->n", bank, bank)  # without a squared copy of the bank
        distance = signal.square() * norms - 2 * signal * (flat @ bank.T)
    evidence = -distance / (2 * sigma.square())
    undecided = torch.zeros_like(timesteps, dtype=torch.bool) if open_from is None else timesteps >= open_from
    if rows is not None:
        twin = rows.to(noisy.device)[:, None] == torch.arange(len(bank), device=noisy.device)
        evidence = evidence.masked_fill(twin & undecided[:, None], -torch.inf)
    weight = evidence.softmax(1).nan_to_num()  # of a bank of one nothing may be left
    # Normalised among the feasible ones by themselves, which holds where their share is too small for a quotient.
    inside = evidence.masked_fill(feasible == 0, -torch.inf).softmax(1).nan_to_num()
    with without_autocast(noisy):
        shift = ((inside - weight) @ bank).reshape(noisy.shape)
        probability = (weight @ feasible).clamp(max=1)
    fully = undecided & (feasible > 0).any()  # of a bank without feasible samples nothing can be learnt
    return Conditioned(shift.to(noisy.dtype), torch.where(fully, torch.ones_like(probability), probability))
