"""Pictures that are damaged, or of more pixels than anyone has."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from constrained_diffusion.runtime.untrusted import open_picture


def png(width: int, height: int) -> bytes:
    """A PNG file that claims its size and holds almost nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("side", [10_000, 60_000, 2**31 - 1])
def test_a_picture_of_too_many_pixels_is_not_unpacked(tmp_path: Path, side: int) -> None:
    (tmp_path / "x.png").write_bytes(png(side, side))
    with (
        pytest.raises(ValueError, match=r"x.png' is not a picture .*decompression bomb"),
        open_picture(tmp_path / "x.png"),
    ):
        pytest.fail("it was opened")


def test_what_is_wrong_with_the_pixels_is_told_too(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "x.png")
    with open_picture(tmp_path / "x.png") as image:
        assert image.size == (64, 64)
    content = (tmp_path / "x.png").read_bytes()
    for kept in (0, 10, 60, len(content) // 2):
        (tmp_path / "x.png").write_bytes(content[:kept])
        with (
            pytest.raises(ValueError, match="is not a picture that Pillow can read"),
            open_picture(tmp_path / "x.png") as image,
        ):
            image.load()
