"""How many bonds an atom has room for, from its token alone."""

from __future__ import annotations

import re
from functools import lru_cache

# The main groups, from boron's to fluorine's, with the most bonds that each element usually has. A charged atom has
# those of the element with as many electrons: [N+] of carbon, [B-] too, [O-] of fluorine.
_PERIODS = (
    (("B", 3), ("C", 4), ("N", 3), ("O", 2), ("F", 1)),
    (("Al", 3), ("Si", 4), ("P", 5), ("S", 6), ("Cl", 1)),
    (("Ga", 3), ("Ge", 4), ("As", 5), ("Se", 6), ("Br", 1)),
    (("In", 3), ("Sn", 4), ("Sb", 5), ("Te", 6), ("I", 5)),
)
_PLACES = {symbol: (period, group) for period in _PERIODS for group, (symbol, _) in enumerate(period)}
# Hydrogen, and the two ends of a repeat unit, which stand where a chain goes on by one single bond.
_OTHERS = {"H": 1, "Cu": 1, "Au": 1, "Li": 1, "Na": 1, "K": 1, "Be": 2, "Mg": 2, "Ca": 2, "Zn": 2}
_BRACKET = re.compile(r"\[\d*([A-Z][a-z]?|[a-z][a-z]?)@{0,2}(?:(H)(\d?))?([+-]*)(\d?)(?::\d+)?\]")
UNKNOWN = 8  #: for atoms that the table lacks, as in SELFIES


@lru_cache(maxsize=1 << 12)
def room(atom: str) -> int:
    """Return how many bonds an atom can have, a double one counting twice, an aromatic one once.

    >>> [room(atom) for atom in ("C", "[N+]", "[O-]", "[PH]", "c", "[Cu]", "[Xe]")]
    [4, 4, 1, 4, 4, 1, 8]
    """
    match = _BRACKET.fullmatch(atom)
    symbol, hydrogen, hydrogens, signs, number = match.groups() if match else (atom, None, None, "", "")
    symbol = symbol.capitalize()
    charge = int(number or len(signs)) * (-1 if signs.startswith("-") else 1) if signs else 0
    if symbol in _PLACES:
        period, group = _PLACES[symbol]
        bonds = period[group - charge][1] if 0 <= group - charge < len(period) else 0
    elif symbol in _OTHERS and not charge:
        bonds = _OTHERS[symbol]
    else:
        return UNKNOWN if not charge else 0
    return max(0, bonds - (int(hydrogens or 1) if hydrogen else 0))
