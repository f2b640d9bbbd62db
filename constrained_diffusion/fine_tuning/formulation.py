"""The named ways to put the diffusion loss and the penalty together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Formulation:
    """How one step's loss is formed.

    Args:
        balanced: scale each penalty by Algorithm 1's detached ratio rho; otherwise rho = 1 (P eq. 14).
        anchored: hold the rows whose clean sample satisfies every constraint to the frozen pretrained model's
            prediction, and give the other rows the penalty alone; otherwise L_diff is the error on all rows.
        conditioned: as anchored, but held to what the frozen model would predict without the infeasible samples, each
            row weighted by its p(feasible | x_t); see `conditioning`.
    """

    balanced: bool
    anchored: bool
    conditioned: bool = False


FORMULATIONS = {
    "penalty": Formulation(balanced=False, anchored=False),  # P eq. 14
    "algorithm1": Formulation(balanced=True, anchored=False),  # P Algorithm 1
    "anchored_penalty": Formulation(balanced=False, anchored=True),
    "anchored_algorithm1": Formulation(balanced=True, anchored=True),
    "conditioned_algorithm1": Formulation(balanced=True, anchored=True, conditioned=True),
}


def named_formulation(name: str) -> Formulation:
    """Return the formulation called `name`.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in FORMULATIONS:
        raise ValueError(f"formulation must be one of {', '.join(FORMULATIONS)}, got '{name}'.")
    return FORMULATIONS[name]
