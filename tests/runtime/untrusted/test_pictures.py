"""Pictures that are damaged, or of more pixels than anyone has."""

from __future__ import annotations

import os
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


def test_the_warning_of_a_bomb_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(png(100, 120))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)  # Pillow itself refuses from twice as many on
    with pytest.raises(ValueError, match="could be decompression bomb"), open_picture(tmp_path / "x.png"):
        pytest.fail("it was opened")


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", b"P5 4 4 255\n" + bytes(16)]
)
def test_other_formats_are_not_read_whatever_the_name_says(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)  # EPS would start Ghostscript
    with pytest.raises(ValueError, match="expected PNG, JPEG, WEBP, BMP"), open_picture(tmp_path / "x.png"):
        pytest.fail("it was opened")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x.png' is not .*no regular file"), open_picture(tmp_path / "x.png"):
        pytest.fail("it was opened")


def test_grey_of_16_bits_keeps_its_shades_and_its_way_up(tmp_path: Path) -> None:
    shades = np.array([[0, 257, 12_345], [32_768, 65_278, 65_535]], dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(shades).save(tmp_path / "x.png", exif=exif)
    with open_picture(tmp_path / "x.png") as image:
        assert np.asarray(image).tolist() == [[0, 1, 48], [128, 254, 255]]  # value / 65535 x 255
        assert image.convert("RGB").getpixel((1, 1)) == (254, 254, 254)
        assert image.getexif()[0x0112] == 6
