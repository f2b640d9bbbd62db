"""Three notations of the same molecules, as tokens.

| notation | a branch | what a wrong token does |
|---|---|---|
| "smiles" | stands in parentheses, `CC(OC)N` | one parenthesis too many or too few is no molecule |
| "postfix" | is closed by one `)` per atom of it, `CCOC))N`; see `polymers.postfix` | another tree of atoms |
| "valence" | the same tokens, read with respect for valences; see `polymers.by_valence` | another molecule |

A molecule has the same tokens in the last two, so that a network trained with one can be read by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from constrained_diffusion.domains.polymers.by_valence import from_postfix_by_valence
from constrained_diffusion.domains.polymers.postfix import from_postfix, to_postfix
from constrained_diffusion.domains.polymers.tokens import tokenize


class Notation(NamedTuple):
    """How a SMILES string becomes tokens, and tokens a string."""

    read: Callable[[str], list[str]]
    write: Callable[[Sequence[str]], str]


NOTATIONS = {
    "smiles": Notation(tokenize, "".join),
    "postfix": Notation(to_postfix, from_postfix),
    "valence": Notation(to_postfix, from_postfix_by_valence),
}


def notation(name: str) -> Notation:
    """Return the notation called `name`.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in NOTATIONS:
        raise ValueError(f"notation must be one of {', '.join(NOTATIONS)}, got '{name}'.")
    return NOTATIONS[name]
