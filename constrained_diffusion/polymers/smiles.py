"""SMILES strings as tokens, and tokens as numbers.

| word | meaning |
|---|---|
| token | an atom, a bond, a bracket or a ring digit of a SMILES string; "[Cu]" and "Cl" are one each |
| vocabulary | the tokens that a data set uses, in a fixed order, with END in front |
| END | the number 0, which fills a string up to the length of its tensor |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# What Schwaller et al. (2018, arXiv 1711.04810) take for a token; the field has kept it.
_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%[0-9]{2}|[BCNOSPFI]|[bcnosp]|[().=#\-+\\/:~@?>*$]|[0-9]")
END = "<end>"


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


class Vocabulary:
    """The tokens that strings may have, and their numbers.

    Args:
        tokens: without END, which gets the number 0.

    Raises:
        ValueError: a token is there twice, or is END.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = [END, *tokens]
        if len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"expected each token of a vocabulary once, and '{END}' not at all, got {list(tokens)}.")
        self._numbers = {token: number for number, token in enumerate(self.tokens)}

    @classmethod
    def of(cls, smiles: Iterable[str]) -> Vocabulary:
        """Return the vocabulary of a data set, in alphabetic order."""
        return cls(sorted({token for string in smiles for token in tokenize(string)}))

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, smiles: Sequence[str], length: int) -> Tensor:
        """Return the numbers of the tokens of each string, filled up with 0, `(B, length)`, int64.

        Raises:
            ValueError: a token outside the vocabulary, or more tokens than `length`; the row is named.
        """
        rows = torch.zeros(len(smiles), length, dtype=torch.long)
        for row, string in enumerate(smiles):
            tokens = tokenize(string)
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
        """Return the strings of numbers `(B, length)`, each up to its first END; they need not be valid."""
        found = []
        for row in numbers.tolist():
            end = row.index(0) if 0 in row else len(row)
            found.append("".join(self.tokens[number] for number in row[:end]))
        return found
