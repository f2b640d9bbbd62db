"""One spelling for each repeat unit: along its backbone, from [Cu] to [Au], side groups in parentheses.

A canonical SMILES starts at whatever atom rdkit ranks first, which leaves the two ends anywhere, and the backbone in
parentheses. Spelt along the backbone, the language that a generator has to learn is a smaller one: the first token and
the last are always the same, and parentheses hold side groups alone. (Where a backbone runs through a ring, part of it
may stand in parentheses still.)
"""

from __future__ import annotations

from constrained_diffusion.domains.polymers.repeat_units import ENDS, canonical, is_valid, read, require_rdkit


def along_backbone(smiles: str) -> str:
    """Return the spelling of a repeat unit along its backbone; equal for two spellings of one unit.

    Raises:
        ValueError: it is no repeat unit.

    >>> along_backbone("COCC(CNCC(CF)OC(=O)[Au])O[Cu]")
    '[Cu]OC(COC)CNCC(CF)OC(=O)[Au]'
    """
    chem = require_rdkit()
    if not is_valid(smiles):
        raise ValueError(f"expected a repeat unit with its ends [Cu] and [Au], got '{smiles[:80]}'.")
    molecule = chem.RWMol(read(str(canonical(smiles))))  # in whose order of atoms ties are broken
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    start, stop = (symbols.index(end.strip("[]")) for end in ENDS)
    # Next to a metal rdkit writes atoms in brackets; next to a dummy atom it does not.
    for isotope, end in enumerate((start, stop), 1):
        atom = molecule.GetAtomWithIdx(end)
        atom.SetAtomicNum(0)
        atom.SetIsotope(isotope)
    chem.SanitizeMol(molecule)
    backbone = list(chem.GetShortestPath(molecule, start, stop))
    rank = list(chem.CanonicalRankAtoms(molecule))
    groups = sorted(set(range(len(symbols))) - set(backbone), key=rank.__getitem__)
    # Without canonical ranks rdkit branches off to lower numbers first, and goes on to the highest.
    numbered = chem.RenumberAtoms(molecule.GetMol(), groups + backbone)
    spelt: str = chem.MolToSmiles(numbered, canonical=False, rootedAtAtom=len(groups))
    return spelt.replace("[1*]", ENDS[0]).replace("[2*]", ENDS[1])
