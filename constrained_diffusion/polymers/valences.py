"""How many bonds an atom has room for, from its token alone."""

from __future__ import annotations

import re
from functools import lru_cache

# The highest usual ones, as rdkit accepts them, and SELFIES (Krenn et al. 2020) has them. The two ends of a repeat unit
# stand where a chain goes on, by one single bond.
_BONDS = {"B": 3, "C": 4, "N": 3, "O": 2, "F": 1, "Si": 4, "P": 5, "S": 6, "Cl": 1, "Br": 1, "I": 1, "Cu": 1, "Au": 1}
_MORE_WITH_CHARGE = {"N", "O", "P", "S"}  # [N+] has four bonds and [O-] one; [C+] and [C-] have three both
_AROMATIC = {"b": 3, "c": 3, "n": 3, "o": 2, "p": 3, "s": 2}
_BRACKET = re.compile(r"\[\d*([A-Z][a-z]?|[a-z])@{0,2}(?:(H)(\d?))?(?:([+-])(\d?))?\]")
UNKNOWN = 8  #: for atoms that the table lacks, as in SELFIES


@lru_cache(maxsize=1 << 12)
def room(atom: str) -> int:
    """Return how many bonds an atom can have, a double one counting twice.

    >>> [room(atom) for atom in ("C", "[N+]", "[O-]", "[PH]", "c", "[Cu]", "[Xe]")]
    [4, 4, 1, 4, 3, 1, 8]
    """
    match = _BRACKET.fullmatch(atom)
    symbol, hydrogen, hydrogens, sign, charge = match.groups() if match else (atom, None, None, None, None)
    if symbol in _AROMATIC:
        bonds = _AROMATIC[symbol]
    elif symbol in _BONDS:
        bonds = _BONDS[symbol]
        if sign:
            change = int(charge or 1)
            bonds += change if sign == "+" and symbol in _MORE_WITH_CHARGE else -change
    else:
        return UNKNOWN
    return max(0, bonds - (int(hydrogens or 1) if hydrogen else 0))
