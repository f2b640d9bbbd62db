"""SMILES strings taken apart into tokens: atoms, bonds, brackets and ring digits."""

from __future__ import annotations

import re

# What Schwaller et al. (2018, arXiv 1711.04810) take for a token; the field has kept it.
_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%[0-9]{2}|[BCNOSPFI]|[bcnosp]|[().=#\-+\\/:~@?>*$]|[0-9]")
_BONDS = set("=#-+\\/:~@?>$")
_RING = re.compile(r"[0-9]|%[0-9]{2}")


def tokenize(smiles: str) -> list[str]:
    """Return the tokens of a SMILES string; joined they are the string again.

    Raises:
        ValueError: part of the string is no token.

    >>> tokenize("CC(Cl)O[Cu]")
    ['C', 'C', '(', 'Cl', ')', 'O', '[Cu]']
    """
    tokens = _TOKEN.findall(smiles)
    if not tokens or sum(map(len, tokens)) != len(smiles):
        rest = _TOKEN.sub("", smiles)
        raise ValueError(f"expected a SMILES string, got '{smiles[:80]}', in which '{rest[:20]}' is no atom or bond.")
    return tokens


def is_bond(token: str) -> bool:
    """Return whether a token is a bond, which stands before the atom that it leads to."""
    return token in _BONDS


def is_ring(token: str) -> bool:
    """Return whether a token is a ring's digit, which stands behind its atom."""
    return _RING.fullmatch(token) is not None
