"""The six figures of polymer generation (Yang et al. 2024), with the denominators that the reference leaves open.

| figure | of | share or mean |
|---|---|---|
| validity | all samples | are repeat units; see `polymers.repeat_units` |
| uniqueness | valid samples | distinct ones, by canonical spelling |
| novelty | distinct valid samples | not in the training set, by canonical spelling |
| synthesizability | clean samples: distinct, valid and new | SA score below 5 |
| similarity | clean samples | mean Tanimoto similarity to the whole training set |
| diversity | pairs of clean samples | 1 - Tanimoto similarity |

The reference counts by plain strings, so that another spelling is new, and divides by the number that was asked for, so
that samples that never came count as unique and new.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from torch import Tensor

from constrained_diffusion.domains.polymers.repeat_units import canonical, fingerprints, is_valid, sa_score, tanimoto

EASY = 5.0  #: SA scores below it count as synthesizable
CHUNK = 512  #: rows of similarities at once


class Counts(NamedTuple):
    """How many samples each figure is about."""

    n: int
    valid: int
    distinct: int
    clean: int


def clean_samples(smiles: Sequence[str], known: Collection[str]) -> tuple[list[str], Counts]:
    """Return the canonical spellings of what is valid, distinct and not in `known`, in order, and the counts.

    Args:
        smiles: the samples.
        known: canonical spellings of the training set.
    """
    valid = [spelling for string in smiles if is_valid(string) and (spelling := canonical(string)) is not None]
    distinct = list(dict.fromkeys(valid))
    clean = [spelling for spelling in distinct if spelling not in known]
    return clean, Counts(len(smiles), len(valid), len(distinct), len(clean))


def polymer_figures(smiles: Sequence[str], known: Collection[str], reference: Tensor) -> dict[str, float | None]:
    """Return the six figures, each in [0, 1]; None where there is no sample that it is about.

    Args:
        smiles: the samples, at least one.
        known: canonical spellings of the training set.
        reference: its fingerprints `(m, bits)`, in {0, 1}.

    Raises:
        ValueError: there are no samples.
    """
    if not smiles:
        raise ValueError("the figures of polymers are shares of samples, so expected at least one, got none.")
    clean, (n, valid, distinct, count) = clean_samples(smiles, known)
    bits = fingerprints(clean)
    return {
        "validity": valid / n,
        "uniqueness": distinct / valid if valid else None,
        "novelty": count / distinct if distinct else None,
        "synthesizability": sum(sa_score(one) < EASY for one in clean) / count if count else None,
        "similarity": mean_similarity(bits, reference) if count and len(reference) else None,
        "diversity": 1 - (mean_similarity(bits, bits) * count - 1) / (count - 1) if count > 1 else None,
    }


def mean_similarity(bits: Tensor, others: Tensor) -> float:
    """Return the mean Tanimoto similarity over all pairs of `(n, bits)` and `(m, bits)`."""
    total = sum(float(tanimoto(part, others).double().sum()) for part in bits.split(CHUNK))
    return total / (len(bits) * len(others))
