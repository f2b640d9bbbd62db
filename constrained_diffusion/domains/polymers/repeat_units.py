"""Repeat units of polymers, by rdkit: molecules with two ends, marked by atoms [Cu] and [Au] as in PolyGen's data.

| what | definition (Yang et al. 2024, npj Comput. Mater. 10, 296, methods) |
|---|---|
| valid | rdkit reads it, each end is there once, and hangs by one single bond |
| canonical | rdkit's canonical SMILES, in which two spellings of one unit agree |
| SA score | Ertl and Schuffenhauer (2009): 1 is easy to make, 10 is hard |
| fingerprint | Morgan, radius 2, 2,048 bits |
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.runtime.distribution import needs_extra

ENDS = ("[Cu]", "[Au]")
BITS, RADIUS = 2048, 2


def require_rdkit() -> Any:
    """Return `rdkit.Chem`, which then keeps quiet about strings that it cannot read.

    Raises:
        ImportError: rdkit is not installed; the message names the pip command.
    """
    with needs_extra("polymer", "polymers need rdkit"):
        from rdkit import Chem, RDLogger
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    return Chem


@lru_cache(maxsize=1 << 16)
def read(smiles: str) -> Any:
    """Return the molecule of a SMILES string; None where rdkit reads none, or an empty one."""
    molecule = require_rdkit().MolFromSmiles(smiles)
    return molecule if molecule is not None and molecule.GetNumAtoms() else None


def is_valid(smiles: str) -> bool:
    """Return whether a string is a repeat unit: readable, in one piece, each end once and by one single bond."""
    molecule = read(smiles)
    if molecule is None or "." in smiles:
        return False
    symbols = [end.strip("[]") for end in ENDS]
    ends = [atom for atom in molecule.GetAtoms() if atom.GetSymbol() in symbols]
    if sorted(atom.GetSymbol() for atom in ends) != sorted(symbols) or any(atom.GetFormalCharge() for atom in ends):
        return False
    if any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms()):  # "*", which is no element
        return False
    # An oxygen of three bonds rdkit takes for one that coordinates to a metal, by a dative bond; an end is no metal.
    bonds = [[str(bond.GetBondType()) for bond in atom.GetBonds()] for atom in ends]
    return all(found == ["SINGLE"] for found in bonds)


def canonical(smiles: str) -> str | None:
    """Return rdkit's canonical spelling, None where it reads none.

    >>> canonical("[Au]OCC") == canonical("C(C)O[Au]")
    True
    """
    molecule = read(smiles)
    return None if molecule is None else str(require_rdkit().MolToSmiles(molecule))


def sa_score(smiles: str) -> float:
    """Return how hard a molecule is to make, 1 (easy) to 10; rdkit's own contribution.

    Raises:
        ValueError: it is no molecule.
    """
    molecule = read(smiles)
    if molecule is None:
        raise ValueError(f"expected a molecule, got '{smiles[:80]}', which rdkit does not read.")
    from rdkit.Contrib.SA_Score import sascorer

    return float(sascorer.calculateScore(molecule))


def fingerprints(smiles: Sequence[str]) -> Tensor:
    """Return Morgan fingerprints of molecules, `(n, 2048)`, uint8 in {0, 1}.

    Raises:
        ValueError: one is no molecule; it is named with its row.
    """
    require_rdkit()
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    rows = []
    for row, string in enumerate(smiles):
        molecule = read(string)
        if molecule is None:
            raise ValueError(f"expected molecules, got '{string[:80]}' (row {row}), which rdkit does not read.")
        rows.append(torch.from_numpy(generator.GetFingerprintAsNumPy(molecule)))
    return torch.stack(rows) if rows else torch.zeros(0, BITS, dtype=torch.uint8)


def tanimoto(a: Tensor, b: Tensor) -> Tensor:
    """Return the Tanimoto similarity of fingerprints `(n, bits)` and `(m, bits)`, `(n, m)`; 0 for two empty ones."""
    a, b = a.float(), b.float()
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1) - both
    return both / either.clamp(min=1)
