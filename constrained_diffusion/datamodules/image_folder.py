"""A user's own images: every picture in a folder."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ImageFolderDataModule(DiffusionDataModule):
    """All pictures below a folder, in alphabetical order, resized and cropped to a square, `(C, size, size)` in [0, 1].

    Hidden files, such as the `._0.png` that macOS writes beside a picture, and what is no regular file are left out.

    Args:
        folder: where the pictures lie; subfolders count.
        size: edge length in pixels.
        channels: 1 (grey) or 3 (colour).
        held_out: share of the pictures, in (0, 1), kept for the held-out loss: every (1 / held_out)-th one.
        kwargs: see `DiffusionDataModule`.

    Raises:
        FileNotFoundError: the folder does not exist or holds no pictures.
        ValueError: channels or held_out are out of range, or a picture (PNG, JPEG, WebP, BMP) cannot be read (named).
    """

    def __init__(self, folder: str, size: int, channels: int = 3, held_out: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if channels not in (1, 3) or not 0 < held_out < 1:
            raise ValueError(f"expected channels 1 or 3 and held_out in (0, 1), got {channels} and {held_out}.")
        self.folder, self.size, self.channels, self.held_out = Path(folder), size, channels, held_out

    def build(self) -> tuple[TensorRows, TensorRows]:
        named = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        paths = [path for path in named if path.is_file() and not _is_hidden(path.relative_to(self.folder))]
        if left_out := sorted(set(named) - set(paths)):
            warnings.warn(
                f"{len(left_out)} of {len(named)} names of pictures below '{self.folder}' are left out, hidden files "
                f"or no files at all: the first is '{left_out[0]}'.",
                stacklevel=2,
            )
        if len(paths) < 2:
            raise FileNotFoundError(
                f"expected at least two pictures ({', '.join(sorted(SUFFIXES))}) below '{self.folder}', "
                f"found {len(paths)}."
            )
        images = torch.stack([self._read(path) for path in paths])
        held_out = torch.tensor([_starts_a_share(i, self.held_out) for i in range(len(images))])
        return TensorRows(images[~held_out]), TensorRows(images[held_out])

    def _read(self, path: Path) -> Tensor:
        from PIL import ImageOps

        with untrusted.open_picture(path) as image:
            upright = ImageOps.exif_transpose(image)  # cameras write pixels as they lie and note which way is up
            square = ImageOps.fit(upright.convert("L" if self.channels == 1 else "RGB"), (self.size, self.size))
        pixels = torch.from_numpy(np.array(square)).reshape(self.size, self.size, self.channels)
        return pixels.permute(2, 0, 1)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _starts_a_share(row: int, share: float) -> bool:
    """Return whether `row` is one of the evenly spread `share` of all rows; row 0 always is."""
    before, after = (math.ceil(round(i * share, 9)) for i in (row, row + 1))
    return after > before
