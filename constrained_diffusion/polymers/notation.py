"""Two notations of the same molecules, as tokens.

| notation | a branch | what a wrong token does |
|---|---|---|
| "smiles" | stands in parentheses, `CC(OC)N` | one parenthesis too many or too few is no molecule |
| "postfix" | is closed by one `)` per atom of it, `CCOC))N` (DeepSMILES, O'Boyle and Dalke 2018) | another molecule |

In postfix a token pushes an atom, bonded to the one on top, onto a stack, and `)` takes the top off, unless it is the
only one: whatever the parentheses, the string is a tree. What remains to be learnt is chemistry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

# What Schwaller et al. (2018, arXiv 1711.04810) take for a token; the field has kept it.
_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%[0-9]{2}|[BCNOSPFI]|[bcnosp]|[().=#\-+\\/:~@?>*$]|[0-9]")
_BONDS = set("=#-+\\/:~@?>$")  # written before the atom that they lead to
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


def from_postfix(tokens: Sequence[str]) -> str:
    """Return the SMILES string of tokens in postfix notation; it need not be a molecule.

    >>> from_postfix(["[Cu]", "O", "C", "C", "N", ")", "=", "O", ")", ")", "C", "[Au]"])
    '[Cu]OC(C(N)=O)C[Au]'
    """
    texts, children, bond = [""], [list[int]()], ""
    stack = [0]  # of places in `texts`; the first is none
    for token in tokens:
        if token == ")":
            stack = stack if len(stack) <= 2 else stack[:-1]
        elif token in _BONDS:
            bond += token
        elif _RINGS.fullmatch(token):
            texts[stack[-1]] += bond + token
            bond = ""
        else:
            children[stack[-1]].append(len(texts))
            stack.append(len(texts))
            texts.append(bond + token)
            children.append([])
            bond = ""
    return _written(texts, children) + bond


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


NOTATIONS = {"smiles": Notation(tokenize, "".join), "postfix": Notation(to_postfix, from_postfix)}


def notation(name: str) -> Notation:
    """Return the notation called `name`.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in NOTATIONS:
        raise ValueError(f"notation must be one of {', '.join(NOTATIONS)}, got '{name}'.")
    return NOTATIONS[name]
