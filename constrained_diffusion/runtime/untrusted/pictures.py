"""Image files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def open_picture(path: Path) -> Iterator[Any]:
    """Open an image with Pillow, for the length of a block; what goes wrong in the block is the file's fault.

    Raises:
        ValueError: it is no picture, damaged, or has more pixels than Pillow takes for honest (`MAX_IMAGE_PIXELS`).
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except Exception as error:  # the readers of Pillow's many formats have no exception in common
        raise ValueError(
            f"'{path}' is not a picture that Pillow can read ({error}); mend it or take it out."
        ) from error
