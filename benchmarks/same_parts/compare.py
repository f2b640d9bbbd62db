"""Two sets of tensors, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor

# Tensors that differ on purpose: "job/tensor", with * for any text, and why.
EXPECTED: dict[str, str] = {}


class Difference(NamedTuple):
    """A tensor that the two trees do not have alike."""

    name: str
    what: str
    expected: str = ""  #: why it should differ; empty where it should not


def differences(
    base: Mapping[str, Tensor], current: Mapping[str, Tensor], expected: Mapping[str, str], job: str = ""
) -> list[Difference]:
    """Return the tensors that only one side has, or whose type, shape or bits are not those of the other.

    Args:
        base: tensors by name.
        current: likewise.
        expected: patterns of "job/tensor", with the reason why these differ.
        job: its name.
    """
    found = []
    for name in sorted(base.keys() | current.keys()):
        what = difference(base.get(name), current.get(name))
        if what:
            reasons = [reason for pattern, reason in expected.items() if fnmatchcase(f"{job}/{name}", pattern)]
            found.append(Difference(name, what, reasons[0] if reasons else ""))
    return found


def difference(base: Tensor | None, current: Tensor | None) -> str:
    """Return how two tensors differ; empty where they have the same bits. None: there is no such tensor."""
    if base is None or current is None:
        return "only in the current tree" if base is None else "only in the base"
    if base.dtype != current.dtype or base.shape != current.shape:
        return f"{_kind(base)} in the base, {_kind(current)} now"
    if torch.equal(bits(base), bits(current)):
        return ""
    apart = (bits(base) != bits(current)).any(1)
    largest = (base.double() - current.double()).abs().max()
    return f"{int(apart.sum())} of {base.numel()} values, by at most {largest:.3g}"


def bits(values: Tensor) -> Tensor:
    """Return the bytes of each value, `(n, bytes)`: a number that is none equals itself so, and 0 is not -0."""
    return values.detach().contiguous().reshape(-1, 1).view(torch.uint8)


def _kind(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"
