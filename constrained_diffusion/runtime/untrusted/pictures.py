"""Image files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  #: all that are read; Pillow's others run programs (EPS) or are seldom tried


@contextmanager
def open_picture(path: Path) -> Iterator[Any]:
    """Open an image with Pillow, for the length of a block; what goes wrong in the block is the file's fault.

    Its format is read from its first bytes, whatever its name says, and is one of `FORMATS`. 16-bit grey comes as 8.

    Raises:
        ValueError: it is no picture of these, damaged, no regular file (opening a pipe would wait for ever), or has
            more pixels than Pillow takes for honest (`MAX_IMAGE_PIXELS`).
    """
    from PIL import Image

    try:
        if not path.is_file():
            raise ValueError("no regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield _eight_bits(image)
    except Exception as error:  # the readers of Pillow's formats have no exception in common
        raise ValueError(
            f"'{path}' is not a picture that Pillow can read ({error}); expected {', '.join(FORMATS)}: mend it or take "
            "it out."
        ) from error


def _eight_bits(image: Any) -> Any:
    """Return grey of 16 bits scaled to 8, which Pillow would cut off at 255; other pictures as they are."""
    if not image.mode.startswith("I"):
        return image
    from PIL import Image

    scaled = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    scaled.getexif().update(image.getexif())  # which way is up
    return scaled
