"""What the figures of generated polymers need to know of the training set; it travels with a generator's weights.

| file | what |
|---|---|
| vocabulary.json | the notation, and the tokens in their order, without END |
| units.txt | the training units, one a line |
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from torch import Tensor

from constrained_diffusion.domains.polymers.repeat_units import canonical, fingerprints
from constrained_diffusion.domains.polymers.vocabulary import Vocabulary
from constrained_diffusion.runtime import assets, untrusted
from constrained_diffusion.runtime.files import write_json, write_text

TOKENS, UNITS = "vocabulary.json", "units.txt"


class Reference:
    """A vocabulary and the units of a training set.

    Args:
        vocabulary: the tokens.
        units: SMILES of the training units.
    """

    def __init__(self, vocabulary: Vocabulary, units: list[str]) -> None:
        self.vocabulary, self.units = vocabulary, units

    @classmethod
    def load(cls, source: str) -> Reference:
        """Read a reference from a zoo name or a folder.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: a file is damaged.
        """
        folder = assets.path(source) if source in assets.available() else Path(source)
        missing = [name for name in (TOKENS, UNITS) if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"polymers are compared with what a generator was trained on, {TOKENS} and {UNITS}, but '{folder}' has "
                f"no {' and no '.join(missing)}; give the name of zoo weights that hold them, or a folder with them."
            )
        told = untrusted.read_json(folder / TOKENS)
        tokens = told.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError(
                f"'{folder / TOKENS}' should hold a notation and a list of tokens; write it with `Reference.save`."
            )
        return cls(Vocabulary(tokens, str(told.get("notation"))), (folder / UNITS).read_text(encoding="utf-8").split())

    def save(self, folder: Path) -> None:
        """Write both files; the folder is made."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"notation": self.vocabulary.notation, "tokens": self.vocabulary.tokens[1:]}
        write_json(folder / TOKENS, content, indent=None)
        write_text(folder / UNITS, "\n".join(self.units) + "\n")

    @cached_property
    def known(self) -> set[str]:
        """Canonical spellings of the units."""
        return {spelling for unit in self.units if (spelling := canonical(unit)) is not None}

    @cached_property
    def fingerprints(self) -> Tensor:
        """Fingerprints of the units, `(m, 2048)`, in {0, 1}."""
        return fingerprints(self.units)
