"""The judge of polymers: kernel ridge regression of log10 conductivity on Morgan fingerprints, which only measures.

It shares nothing with a preference model but the table: other molecules (`polymers.parts`), another representation
(counts of substructures in place of tokens), another kind of model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from constrained_diffusion.domains.polymers.repeat_units import read, require_rdkit
from constrained_diffusion.runtime import assets, untrusted
from constrained_diffusion.runtime.files import write_json

RADIUS, BITS, RIDGE = 3, 4096, 0.5
HIGH = 0.947  #: the high class of PolyGen's table begins at this quantile
FILE = "judge.json"


class Judge(NamedTuple):
    """A fitted kernel ridge regression."""

    smiles: list[str]  #: what it was fitted on
    weights: Tensor  #: of their kernels, `(m,)`, float64
    mean: float  #: of log10 conductivity
    threshold: float  #: of its own predictions, from which on a unit is of the high class

    @classmethod
    def fit(cls, smiles: Sequence[str], values: Tensor, real: Sequence[str], ridge: float = RIDGE) -> Self:
        """Fit to molecules and their log10 conductivities `(m,)`; the threshold is a quantile of those of `real`."""
        counts, mean = fragment_counts(smiles), float(values.double().mean())
        kernel = similarity(counts, counts)
        weights = torch.linalg.solve(kernel + ridge * torch.eye(len(kernel)).double(), values.double() - mean)
        judge = cls(list(smiles), weights, mean, 0.0)
        return judge._replace(threshold=float(judge.predict(real).quantile(HIGH)))

    def predict(self, smiles: Sequence[str]) -> Tensor:
        """Return the predicted log10 conductivity, in S/cm, of molecules, `(n,)`, float64.

        Raises:
            ValueError: one is no molecule; it is named with its row.
        """
        known, found = fragment_counts(self.smiles), fragment_counts(smiles)
        parts = [similarity(part, known) @ self.weights for part in found.split(1000)]
        return torch.cat([found.new_zeros(0), *parts]) + self.mean

    def save(self, folder: Path) -> None:
        """Write `judge.json`; the folder is made."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "smiles": self.smiles,
            "weights": [round(weight, 6) for weight in self.weights.tolist()],
            "mean": self.mean,
            "threshold": self.threshold,
        }
        write_json(folder / FILE, content, indent=None)


def load_judge(source: str) -> Judge:
    """Read a judge from a zoo name or a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged.
    """
    file = (assets.path(source) if source in assets.available() else Path(source)) / FILE
    if not file.is_file():
        raise FileNotFoundError(f"a judge of polymers is a zoo name or a folder with {FILE}; '{source}' is neither.")
    content = untrusted.read_json(file)
    try:
        weights = torch.tensor([float(weight) for weight in content["weights"]], dtype=torch.float64)
        judge = Judge([str(one) for one in content["smiles"]], weights, *(float(content[key]) for key in _NUMBERS))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"'{file}' should hold {', '.join(Judge._fields)}, but does not ({error!r}).") from error
    if not len(judge.weights) == len(judge.smiles) or not judge.smiles:
        raise ValueError(f"'{file}' should hold one weight for each of its molecules; make it again.")
    if not all(map(math.isfinite, (*judge.weights.tolist(), judge.mean, judge.threshold))):
        raise ValueError(f"'{file}' should hold finite numbers, but has NaN or infinity; make it again.")
    return judge


_NUMBERS = ("mean", "threshold")


def fragment_counts(smiles: Sequence[str]) -> Tensor:
    """Return how often each substructure of radius up to 3 is there, hashed, `(n, 4096)`, float64.

    Raises:
        ValueError: one is no molecule; it is named with its row.
    """
    require_rdkit()
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    rows = torch.zeros(len(smiles), BITS, dtype=torch.float64)
    for row, string in enumerate(smiles):
        molecule = read(string)
        if molecule is None:
            raise ValueError(f"expected molecules, got '{string[:80]}' (row {row}), which rdkit does not read.")
        rows[row] = torch.from_numpy(generator.GetCountFingerprintAsNumPy(molecule).astype("float64"))
    return rows


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the Tanimoto similarity of counts `(n, d)` and `(m, d)`, a.b / (a.a + b.b - a.b), `(n, m)`.

    >>> similarity(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    tensor([[0.5000, 1.0000]])
    """
    both = a @ b.T
    return both / (a.square().sum(1)[:, None] + b.square().sum(1) - both)
