from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem
from rdkit.Chem import Draw

from constrained_diffusion.domains.polymers.drawing import COLUMNS, MARGIN, SIDE, unit_pictures
from constrained_diffusion.domains.polymers.repeat_units import canonical
from constrained_diffusion.runtime.distribution import install_hint

UNITS = ["[Cu]CCO[Au]", "[Cu]CC(Cl)N[Au]", "[Cu]c1ccc(C(=O)[Au])cc1"]
INVALID = ["CC(", "CCO", "[Cu]C.C[Au]", "", 5 * "CCCCCOOOOO"]


def drawn(pictures: torch.Tensor) -> torch.Tensor:
    """Return the share of pixels of each picture that are not white, `(n,)`."""
    return (pictures < 1).any(1).flatten(1).double().mean(1)


def test_every_string_has_a_picture_of_its_own() -> None:
    pictures = unit_pictures([*UNITS, *INVALID])
    assert pictures.shape == (8, 3, SIDE, SIDE)
    assert pictures.dtype == torch.float32
    assert float(pictures.min()) >= 0
    assert float(pictures.max()) == 1
    assert bool((drawn(pictures) > 0.002).all())
    assert bool((drawn(pictures) < 0.5).all())
    for row, picture in enumerate(pictures):
        assert not any(torch.equal(picture, other) for other in pictures[row + 1 :])


def test_a_picture_depends_on_its_string_alone() -> None:
    together = unit_pictures([*UNITS, *INVALID])
    for picture, string in zip(together, [*UNITS, *INVALID], strict=True):
        assert torch.equal(unit_pictures([string])[0], picture)


def test_units_are_drawn_by_rdkit() -> None:
    for picture, unit in zip(unit_pictures(UNITS), UNITS, strict=True):
        image = Draw.MolToImage(Chem.MolFromSmiles(unit), size=(SIDE, SIDE)).convert("RGB")
        np.testing.assert_allclose(picture.permute(1, 2, 0).numpy() * 255, np.array(image), atol=1e-3)


def test_strings_that_are_no_units_are_written_in_red_from_the_margin_on() -> None:
    pictures = unit_pictures(INVALID)
    ink = (pictures < 1).any(1)
    assert not bool(ink[:, :MARGIN].any())
    assert not bool(ink[:, :, : MARGIN - 1].any())
    least = pictures.amin((2, 3))  # of red, green and blue
    assert bool((least[:, :1] > least[:, 1:]).all())
    rows = ink.any(2).sum(1)
    assert rows[-1] > 2 * rows[1]  # 50 characters need three lines
    assert not bool(ink[-1, :, -MARGIN:].any())  # of 20 characters, which fit
    assert len(INVALID[-1]) > 2 * COLUMNS


def test_drawing_changes_no_molecule() -> None:
    before = [canonical(unit) for unit in UNITS]
    unit_pictures(UNITS)
    assert [canonical(unit) for unit in UNITS] == before


def test_no_strings_give_no_pictures() -> None:
    assert unit_pictures([]).shape == (0, 3, SIDE, SIDE)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("polymer"))):
        unit_pictures(UNITS)
