"""Pictures of repeat units: their structure drawn by rdkit, or, of a string that is none, the string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from constrained_diffusion.domains.polymers.repeat_units import is_valid, read, require_rdkit

SIDE, MARGIN, COLUMNS = 160, 8, 20  #: pixels, pixels, characters of a string to a line


def unit_pictures(smiles: Sequence[str]) -> Tensor:
    """Return pictures of strings, `(n, 3, 160, 160)` in [0, 1]; the ends of a unit are drawn as rdkit draws [Cu], [Au].

    Raises:
        ImportError: rdkit is not installed.
    """
    import numpy as np

    require_rdkit()
    from rdkit.Chem import Draw

    pictures, draw = [], cast(Any, Draw.MolToImage)
    for string in smiles:
        image = draw(read(string), size=(SIDE, SIDE)) if is_valid(string) else _written(string)
        pictures.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255)
    return torch.stack(pictures) if pictures else torch.zeros(0, 3, SIDE, SIDE)


def _written(string: str) -> Any:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), "white")
    lines = [string[start : start + COLUMNS] for start in range(0, len(string), COLUMNS)]
    ImageDraw.Draw(image).text((MARGIN, MARGIN), "\n".join(lines) or "(empty)", fill=(150, 60, 50))
    return image
