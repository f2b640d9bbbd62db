"""A folder of real picture files: which rows they become, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from constrained_diffusion.datamodules.image_folder import ImageFolderDataModule


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def flat(value: int, size: int = 4) -> np.ndarray:
    return np.full((size, size, 3), value, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures in two folders, of brightness 0, 20, .., 180 in alphabetical order of their paths."""
    for i in range(10):
        write(tmp_path / ("a" if i < 6 else "b") / f"{i}.{'png' if i % 2 else 'BMP'}", flat(20 * i))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_every_picture_in_alphabetical_order(folder: Path) -> None:
    data = ImageFolderDataModule(str(folder), size=4, held_out=0.25, batch_size=2)
    train, held_out = data.data
    assert held_out.clean[:, 0, 0, 0].tolist() == [0, 80, 160]
    assert train.clean[:, 0, 0, 0].tolist() == [20, 40, 60, 100, 120, 140, 180]
    assert data.sample_shape == (3, 4, 4)
    batch = next(iter(data.train_dataloader()))
    assert batch.clean.dtype == torch.float32
    assert set((batch.clean * 255).round().flatten().tolist()) <= {20.0, 40.0, 60.0, 100.0, 120.0, 140.0, 180.0}


@pytest.mark.parametrize(("share", "rows"), [(0.1, [0]), (0.3, [0, 3, 6]), (0.5, [0, 2, 4, 6, 8]), (0.05, [0])])
def test_the_held_out_share_is_spread_evenly(folder: Path, share: float, rows: list[int]) -> None:
    _, held_out = ImageFolderDataModule(str(folder), size=4, held_out=share).data
    assert held_out.clean[:, 0, 0, 0].tolist() == [20 * row for row in rows]


def test_a_large_share_leaves_training_rows(folder: Path) -> None:
    train, held_out = ImageFolderDataModule(str(folder), size=4, held_out=0.8).data
    assert (len(train), len(held_out)) == (2, 8)


def test_pixels_and_channels_are_where_they_belong(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    for i in range(2):
        write(tmp_path / f"{i}.png", pixels[i])
    train, _ = ImageFolderDataModule(str(tmp_path), size=6).data
    assert torch.equal(train.clean[0], torch.from_numpy(pixels[1]).permute(2, 0, 1))
    grey, _ = ImageFolderDataModule(str(tmp_path), size=6, channels=1).data
    luma = pixels[1] @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as Pillow documents it
    assert grey.clean.shape == (1, 1, 6, 6)
    assert np.abs(grey.clean[0, 0].numpy() - luma).max() <= 1


def test_the_middle_is_cut_out_and_made_small(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200  # only the outer thirds are black
    for name in "ab":
        write(tmp_path / f"{name}.png", wide)
    train, _ = ImageFolderDataModule(str(tmp_path), size=4, held_out=0.5).data
    assert train.clean.shape == (1, 3, 4, 4)
    assert (train.clean > 180).all()  # a squeezed or another part would be black somewhere


def test_what_the_camera_noted_about_up_is_heeded(tmp_path: Path) -> None:
    upright = np.zeros((6, 6, 3), dtype=np.uint8)
    upright[:3] = 255  # sky
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    for name in "ab":
        Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / f"{name}.png", exif=exif)
    train, _ = ImageFolderDataModule(str(tmp_path), size=6).data
    assert torch.equal(train.clean[0], torch.from_numpy(upright).permute(2, 0, 1))


@pytest.mark.parametrize("content", [b"no picture at all", None])
def test_a_broken_picture_is_named(folder: Path, content: bytes | None) -> None:
    broken = folder / "a" / "1.png"
    broken.write_bytes(content or broken.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"'.*1\.png' is not a picture that Pillow can read .* mend it or take it out"):
        _ = ImageFolderDataModule(str(folder), size=4).data


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_pictures(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"at least two pictures \(.*\.png.*\) below '.*{name}', found 0"):
        _ = ImageFolderDataModule(str(tmp_path / name), size=4).data


@pytest.mark.parametrize("setting", [{"channels": 4}, {"held_out": 0.0}, {"held_out": 1.0}])
def test_bad_settings(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected channels 1 or 3 and held_out in \(0, 1\)"):
        ImageFolderDataModule("x", size=4, **setting)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_what_only_has_a_picture_s_name_is_left_out_with_a_word(folder: Path) -> None:
    (folder / "a" / "._0.png").write_bytes(b"\x00\x05\x16\x07 resource fork")  # as macOS writes beside 0.png
    (folder / ".thumbnails").mkdir()
    write(folder / ".thumbnails" / "0.png", flat(255))
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "folder.png").mkdir()
    data = ImageFolderDataModule(str(folder), size=4, held_out=0.25)
    with pytest.warns(UserWarning, match=r"4 of 14 names of pictures below .* the first is '.*0.png'"):
        train, held_out = data.data
    assert sorted([*train.clean[:, 0, 0, 0].tolist(), *held_out.clean[:, 0, 0, 0].tolist()]) == list(range(0, 200, 20))


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_of_16_bits_is_not_white(tmp_path: Path, channels: int) -> None:
    for i, value in enumerate((0, 32_896)):
        write(tmp_path / f"{i}.png", np.full((4, 4), value, dtype=np.uint16))
    train, _ = ImageFolderDataModule(str(tmp_path), size=4, channels=channels).data
    assert train.clean.unique().tolist() == [128]
