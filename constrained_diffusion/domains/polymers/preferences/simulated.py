r"""Preferences simulated from a measured property: there is no public table of experts' preferences among polymers.

    python -m constrained_diffusion.domains.polymers.preferences.simulated \
        --table <PolyGen's table> --count 5000 --to pairs.csv

Two different molecules are drawn evenly; the first is preferred with probability g_1 / (g_1 + g_2), where the merit g
is the property to the power beta (P section 4.3). With beta = 6, values 0.1 decades apart are told apart in four of
five comparisons.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from constrained_diffusion.domains.polymers.preferences.pairs import Preferences, write_preferences
from constrained_diffusion.domains.polymers.table import read_table
from constrained_diffusion.runtime.randomness import keyed_generator

STREAM = 7  #: of random numbers


def simulate_preferences(
    smiles: Sequence[str], values: Tensor, count: int, beta: float = 6.0, seed: int = 0
) -> Preferences:
    """Return `count` pairs and their outcomes.

    Args:
        smiles: n distinct molecules, at least 2.
        values: the property of each, `(n,)`, above 0.
        count: number of pairs.
        beta: how sure the preferences are; 0 is a coin.
        seed: of pairs and outcomes.

    Raises:
        ValueError: fewer than two molecules or than one pair, values that are not above 0, or a negative beta.
    """
    if len(smiles) < 2 or count < 1 or len(values) != len(smiles):
        raise ValueError(
            "expected at least two molecules, a value of each and at least one pair, got "
            f"{len(smiles)}, {len(values)} and {count}."
        )
    if not bool((values > 0).all()) or not 0 <= beta < float("inf"):
        raise ValueError(f"expected values above 0 and beta >= 0, got a least value of {values.min():g} and {beta}.")
    generator = keyed_generator(STREAM, seed)
    first = torch.randint(len(smiles), (count,), generator=generator)
    second = (first + torch.randint(1, len(smiles), (count,), generator=generator)) % len(smiles)
    margin = beta * (values[first].double().log() - values[second].double().log())
    outcomes = torch.rand(count, generator=generator, dtype=torch.float64) < margin.sigmoid()
    return Preferences(list(smiles), torch.stack([first, second], dim=1), outcomes.float())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table", type=Path, required=True, help="of polymers; see constrained_diffusion.domains.polymers.table"
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--beta", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, required=True, help="CSV to write")
    given = parser.parse_args(arguments)
    if given.to.exists():
        parser.error(f"'{given.to}' is there already; choose another name, or move it away.")
    table = read_table(given.table)
    write_preferences(
        simulate_preferences(table.smiles, table.conductivity, given.count, given.beta, given.seed), given.to
    )
    print(f"{given.count} simulated preferences among {len(table.smiles)} molecules: {given.to}")


if __name__ == "__main__":
    main()
