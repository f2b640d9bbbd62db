"""SMILES strings as tokens, and tokens as numbers.

| word | meaning |
|---|---|
| token | an atom, a bond, a bracket or a ring digit of a SMILES string; "[Cu]" and "Cl" are one each |
| vocabulary | the tokens that a data set uses, in a fixed order, with END in front |
| END | the number 0, which fills a string up to the length of its tensor |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from constrained_diffusion.domains.polymers.notation import notation as named_notation

END = "<end>"
LABELS = ("[Ac]", "[Ag]")  #: PolyGen's tokens behind a unit, of the low and of the high class


class Vocabulary:
    """The tokens that strings may have, and their numbers.

    Args:
        tokens: without END, which gets the number 0.
        notation: "smiles", "postfix" or "valence"; see `polymers.notation`.

    Raises:
        ValueError: a token is there twice, or is END, or there is no such notation.
    """

    def __init__(self, tokens: Sequence[str], notation: str = "smiles") -> None:
        self.notation, (self._read, self._write) = notation, named_notation(notation)
        self.tokens = [END, *tokens]
        if len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"expected each token of a vocabulary once, and '{END}' not at all, got {list(tokens)}.")
        self._numbers = {token: number for number, token in enumerate(self.tokens)}

    @classmethod
    def of(cls, smiles: Iterable[str], notation: str = "smiles") -> Vocabulary:
        """Return the vocabulary of a data set, in alphabetic order."""
        read = named_notation(notation).read
        return cls(sorted({token for string in smiles for token in read(string)}), notation)

    def __len__(self) -> int:
        return len(self.tokens)

    def same_tokens(self, other: Vocabulary) -> bool:
        """Return whether a molecule has the same numbers in the other vocabulary; "postfix" and "valence" agree."""
        return self.tokens == other.tokens and self._read is other._read

    def fits(self, smiles: str, length: int) -> bool:
        """Return whether `encode` takes a string: at most `length` tokens, all of the vocabulary.

        Raises:
            ValueError: part of it is no token.
        """
        tokens = self._read(smiles)
        return len(tokens) <= length and self._numbers.keys() >= set(tokens)

    def encode(self, smiles: Sequence[str], length: int) -> Tensor:
        """Return the numbers of the tokens of each string, filled up with 0, `(B, length)`, int64.

        Raises:
            ValueError: a token outside the vocabulary, or more tokens than `length`; the row is named.
        """
        rows = torch.zeros(len(smiles), length, dtype=torch.long)
        for row, string in enumerate(smiles):
            tokens = self._read(string)
            unknown = next((token for token in tokens if token not in self._numbers), None)
            if unknown is not None:
                raise ValueError(
                    f"'{string}' (row {row}) has the token '{unknown}', which is not among the {len(self) - 1} of the "
                    f"vocabulary ({', '.join(self.tokens[1:])}); leave it out, or train on data that has it."
                )
            if len(tokens) > length:
                raise ValueError(
                    f"'{string}' (row {row}) has {len(tokens)} tokens, more than the {length} of a sample; raise the "
                    "length."
                )
            rows[row, : len(tokens)] = torch.tensor([self._numbers[token] for token in tokens])
        return rows

    def decode(self, numbers: Tensor) -> list[str]:
        """Return the strings of numbers `(B, length)`, each up to its first END; they need not be valid.

        LABELS, which name a class and are no atoms, are left out.
        """
        found, labels = [], {self._numbers.get(label) for label in LABELS}
        for row in numbers.tolist():
            end = row.index(0) if 0 in row else len(row)
            found.append(self._write([self.tokens[number] for number in row[:end] if number not in labels]))
        return found
