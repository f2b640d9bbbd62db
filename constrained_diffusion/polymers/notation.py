"""Three notations of the same molecules, as tokens.

| notation | a branch | what a wrong token does |
|---|---|---|
| "smiles" | stands in parentheses, `CC(OC)N` | one parenthesis too many or too few is no molecule |
| "postfix" | is closed by one `)` per atom of it, `CCOC))N` (DeepSMILES, O'Boyle and Dalke 2018) | another tree |
| "valence" | the same tokens, read with respect for valences, as SELFIES are (Krenn et al. 2020) | another molecule |

In postfix a token pushes an atom, bonded to the one on top, onto a stack, and `)` takes the top off, unless it is the
only one: whatever the parentheses, the string is a tree. Read by valence, atoms that have no bond left are taken off
too, a bond is no higher than what both its atoms have left, and nothing is read behind the last free bond. Every
molecule has the same tokens in both, so that a network trained with one can be read by the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from constrained_diffusion.polymers.valences import UNKNOWN, room

# What Schwaller et al. (2018, arXiv 1711.04810) take for a token; the field has kept it.
_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%[0-9]{2}|[BCNOSPFI]|[bcnosp]|[().=#\-+\\/:~@?>*$]|[0-9]")
_BONDS = set("=#-+\\/:~@?>$")  # written before the atom that they lead to
_ORDERS = {"=": 2, "#": 3, "$": 4}  # of bonds; all others are single
_WRITTEN = ["", "", "=", "#"]  # the bond of an order
_RINGS = re.compile(r"[0-9]|%[0-9]{2}")  # written behind their atom


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


def to_postfix(smiles: str) -> list[str]:
    """Return the tokens of a SMILES string in postfix notation.

    Raises:
        ValueError: part of the string is no token, its parentheses do not match, or it is in several pieces.

    >>> to_postfix("[Cu]OC(C(N)=O)C[Au]")
    ['[Cu]', 'O', 'C', 'C', 'N', ')', '=', 'O', ')', ')', 'C', '[Au]']
    """
    found: list[str] = []
    depth, opened = 0, []
    for token in tokenize(smiles):
        if token == "(":
            opened.append(depth)
        elif token == ")" and opened:
            before = opened.pop()
            found += [")"] * (depth - before)
            depth = before
        elif token in (")", "."):
            raise ValueError(
                f"expected a SMILES string of one piece, got '{smiles[:80]}', where '{token}' has no place."
            )
        else:
            depth += not (token in _BONDS or _RINGS.fullmatch(token))
            found.append(token)
    if opened:
        raise ValueError(f"expected a SMILES string, got '{smiles[:80]}', in which a parenthesis is not closed.")
    return found


def from_postfix(tokens: Sequence[str], valences: bool = False) -> str:
    """Return the SMILES string of tokens in postfix notation; it need not be a molecule.

    Args:
        tokens: atoms, bonds, ring digits and `)`, in any order.
        valences: respect them; then it is one, but for rings that are not closed and aromatic atoms outside of rings.

    >>> from_postfix(["[Cu]", "O", "C", "C", "N", ")", "=", "O", ")", ")", "C", "[Au]"])
    '[Cu]OC(C(N)=O)C[Au]'
    >>> from_postfix(["[Cu]", "O", "C", "=", "F", ")", ")", ")", "O", "C"], valences=True)
    '[Cu]OC(F)OC'
    """
    texts, children, free, bond = [""], [list[int]()], [UNKNOWN], ""
    stack = [0]  # of places in `texts`; the first is none
    for token in tokens:
        if token == ")":
            if len(stack) > 2 and (not valences or any(free[place] for place in stack[1:-1])):
                stack.pop()
        elif token in _BONDS:
            bond = token if valences else bond + token
        elif _RINGS.fullmatch(token):
            if not valences or free[stack[-1]]:
                texts[stack[-1]] += bond + token
                free[stack[-1]] -= 1
            bond = ""
        else:
            left = room(token)
            while valences and len(stack) > 1 and not free[stack[-1]]:
                stack.pop()
            if valences and len(texts) > 1:
                if len(stack) == 1 or not left:
                    break
                order = min(_ORDERS.get(bond, 1), free[stack[-1]], left)
                bond = bond if order == _ORDERS.get(bond, 1) else _WRITTEN[order]
                free[stack[-1]] -= order
                left -= order
            children[stack[-1]].append(len(texts))
            stack.append(len(texts))
            texts.append(bond + token if len(texts) > 1 or not valences else token)
            children.append([])
            free.append(left)
            bond = ""
    return _written(texts, children) + ("" if valences else bond)


def _written(texts: list[str], children: list[list[int]]) -> str:
    """Write a tree: all branches but the last in parentheses. Without recursion: a chain may be long."""
    done = [""] * len(texts)
    for place in reversed(range(len(texts))):  # children stand behind their parents
        inner = [done[child] for child in children[place]]
        done[place] = texts[place] + "".join(f"({branch})" for branch in inner[:-1]) + "".join(inner[-1:])
    return done[0]


class Notation(NamedTuple):
    """How a SMILES string becomes tokens, and tokens a string."""

    read: Callable[[str], list[str]]
    write: Callable[[Sequence[str]], str]


NOTATIONS = {
    "smiles": Notation(tokenize, "".join),
    "postfix": Notation(to_postfix, from_postfix),
    "valence": Notation(to_postfix, partial(from_postfix, valences=True)),
}


def notation(name: str) -> Notation:
    """Return the notation called `name`.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in NOTATIONS:
        raise ValueError(f"notation must be one of {', '.join(NOTATIONS)}, got '{name}'.")
    return NOTATIONS[name]
