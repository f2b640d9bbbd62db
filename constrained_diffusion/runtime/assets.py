"""Small pretrained weights that ship with the package; each folder has a card that says how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.runtime import untrusted

FOLDER = Path(__file__).parents[1] / "zoo"


def available() -> list[str]:
    """Return the names of the weights that ship with the package."""
    return sorted(card.parent.name for card in FOLDER.glob("*/CARD.md"))


def path(name: str) -> Path:
    """Return the folder of the weights called `name`.

    Raises:
        ValueError: there is no such entry; the message lists those that exist.
    """
    if name not in available():
        raise ValueError(f"no zoo weights are called '{name}'; there are {', '.join(available()) or 'none'}.")
    return FOLDER / name


def stored_samples(folder: Path, settings: dict[str, Any], sheet: str = "samples") -> Tensor | None:
    """Return the samples that are beside a denoiser's weights, `(N, C, H, W)` in [0, 1]; row i was drawn from seed i.

    Args:
        folder: the weights' folder, with `samples.png` (a sheet of equal tiles) and `card.json` (how it was drawn).
        settings: sampler and precision of the caller's run; None is returned where the sheet was drawn otherwise.
        sheet: "samples", or "training", whose rows were drawn from the seeds `first_seed`, `first_seed` + 1, ..

    Raises:
        ValueError: one of the two files is damaged.
    """
    picture, card = folder / f"{sheet}.png", folder / "card.json"
    if not (picture.is_file() and card.is_file()):
        return None
    drawn = untrusted.read_json(card).get("samples" if sheet == "samples" else f"{sheet}_samples", {})
    if not isinstance(drawn, dict) or any(drawn.get(key) != value for key, value in settings.items()):
        return None
    count, size = drawn.get("count"), drawn.get("size")
    if type(count) is not int or type(size) is not int or min(count, size) < 1:
        raise ValueError(f"'{card}' should say count and size of the samples beside it; fetch both again.")
    return read_sheet(picture, count, size)


def read_sheet(sheet: Path, count: int, size: int) -> Tensor:
    """Return the first `count` tiles of `size` x `size` grey pixels, `(count, 1, size, size)` in [0, 1]."""
    import numpy as np

    with untrusted.open_picture(sheet) as image:
        pixels = torch.from_numpy(np.array(image.convert("L")))
    if min(pixels.shape) < size or (pixels.shape[0] // size) * (pixels.shape[1] // size) < count:
        raise ValueError(f"'{sheet}' has no {count} tiles of {size} x {size} pixels; fetch it and its card again.")
    tiles = pixels.unfold(0, size, size).unfold(1, size, size).reshape(-1, 1, size, size)
    return tiles[:count].float() / 255


def write_sheet(images: Tensor, sheet: Path, columns: int = 100) -> None:
    """Write `(N, 1, size, size)` images in [0, 1] as one 8-bit sheet of tiles."""
    from PIL import Image

    size, rows = images.shape[-1], -(-len(images) // columns)
    tiles = torch.zeros(rows * columns, size, size, dtype=torch.uint8)
    tiles[: len(images)] = (images[:, 0].clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = tiles.reshape(rows, columns, size, size).transpose(1, 2).reshape(rows * size, columns * size)
    Image.fromarray(pixels.numpy()).save(sheet, optimize=True)
