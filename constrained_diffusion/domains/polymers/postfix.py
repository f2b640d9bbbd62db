"""Postfix notation (DeepSMILES, O'Boyle and Dalke 2018): a branch is closed by one `)` per atom of it, `CCOC))N`.

A token pushes an atom, bonded to the one on top, onto a stack, and `)` takes the top off, unless it is the only one:
whatever the parentheses, the string is a tree.
"""

from __future__ import annotations

from collections.abc import Sequence

from constrained_diffusion.domains.polymers.tokens import is_bond, is_ring, tokenize


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
            depth += not (is_bond(token) or is_ring(token))
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
        elif is_bond(token):
            bond += token
        elif is_ring(token):
            texts[stack[-1]] += bond + token
            bond = ""
        else:
            children[stack[-1]].append(len(texts))
            stack.append(len(texts))
            texts.append(bond + token)
            children.append([])
            bond = ""
    return write_tree(texts, children) + bond


def write_tree(texts: list[str], children: list[list[int]]) -> str:
    """Return a tree as SMILES, all branches but the last of a node in parentheses; children stand behind parents.

    >>> write_tree(["C", "O", "=N"], [[1, 2], [], []])
    'C(O)=N'
    """
    done = [""] * len(texts)
    for place in reversed(range(len(texts))):  # without recursion: a chain may be long
        inner = [done[child] for child in children[place]]
        done[place] = texts[place] + "".join(f"({branch})" for branch in inner[:-1]) + "".join(inner[-1:])
    return done[0]
