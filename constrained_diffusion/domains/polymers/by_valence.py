"""Postfix tokens read with respect for valences, the idea of SELFIES (Krenn et al. 2020), so that they are a molecule.

| where a token asks for what cannot be | what is read |
|---|---|
| an atom on one that has no bond left | it goes on the nearest below that has one |
| a higher bond than both its atoms have left | the highest that they have |
| `)` though nothing below has a bond left | nothing |
| an atom where none has a bond left | nothing, nor what follows |
| a ring that is never closed, or onto its own atom or a neighbour, or without a bond left | no ring |

Of several bonds in a row the last counts. What respects valences already is read as it is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from constrained_diffusion.domains.polymers.postfix import write_tree
from constrained_diffusion.domains.polymers.tokens import is_bond, is_ring
from constrained_diffusion.domains.polymers.valences import room

_ORDERS = {"=": 2, "#": 3, "$": 4}  # all others are single
_WRITTEN = ["", "", "=", "#"]  # the bond of an order


def from_postfix_by_valence(tokens: Sequence[str]) -> str:
    """Return the SMILES string of tokens in postfix notation, read by valence.

    rdkit reads it but for aromatic atoms that form no aromatic ring.

    >>> from_postfix_by_valence(["[Cu]", "O", "C", "=", "F", ")", ")", ")", "O", "C"])
    '[Cu]OC(F)OC'
    """
    molecule, bond = _Molecule(), ""
    for token in tokens:
        if token == ")":
            molecule.close()
        elif is_bond(token):
            bond = token
        elif is_ring(token):
            molecule.ring(bond, token)
            bond = ""
        elif molecule.atom(bond, token):
            bond = ""
        else:
            break
    return molecule.smiles()


class _Molecule:
    """A molecule that grows: its atoms, what bonds each has left, and the stack of those that may go on."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.rings: list[list[str]] = []  # of each atom, with their bonds
        self.children: list[list[int]] = []
        self.neighbours: list[set[int]] = []
        self.free: list[int] = []
        self.stack: list[int] = []
        self.opened: dict[str, tuple[int, int, int]] = {}  # by digit: the atom, the place in its rings, the order

    def close(self) -> None:
        if any(self.free[place] for place in self.stack[:-1]):
            self.stack.pop()

    def atom(self, bond: str, token: str) -> bool:
        """Add an atom; whether there was a bond left for it."""
        left, order = room(token), 0
        if self.texts:
            while self.stack and not self.free[self.stack[-1]]:
                self.stack.pop()
            if not self.stack or not left:
                return False
            parent, wanted = self.stack[-1], _ORDERS.get(bond, 1)
            order = min(wanted, self.free[parent], left)
            bond = bond if order == wanted else _WRITTEN[order]
            self.children[parent].append(len(self.texts))
            self._join(parent, len(self.texts), order)
        self.stack.append(len(self.texts))
        self.texts.append(bond + token if order else token)
        self.rings.append([])
        self.children.append([])
        self.neighbours.append(set() if not order else {parent})
        self.free.append(left - order)
        return True

    def ring(self, bond: str, digit: str) -> None:
        """Open a ring at the last atom, or close it there."""
        if not self.stack:
            return
        here, order = self.stack[-1], _ORDERS.get(bond, 1)
        if digit not in self.opened:
            if self.free[here] >= order:
                self.opened[digit] = here, len(self.rings[here]), order
                self.rings[here].append(bond + digit)
                self.free[here] -= order
            return
        there, place, reserved = self.opened.pop(digit)
        self.free[there] += reserved
        order = max(order, reserved)
        if there == here or there in self.neighbours[here] or min(self.free[here], self.free[there]) < order:
            self.rings[there][place] = ""
            return
        self.rings[here].append(bond + digit)
        self.free[here] -= order
        self._join(there, here, order)
        self.neighbours[here].add(there)

    def smiles(self) -> str:
        for atom, place, _ in self.opened.values():
            self.rings[atom][place] = ""
        if not self.texts:
            return ""
        written = [text + "".join(rings) for text, rings in zip(self.texts, self.rings, strict=True)]
        return write_tree(written, self.children)

    def _join(self, first: int, second: int, order: int) -> None:
        self.free[first] -= order
        self.neighbours[first].add(second)
