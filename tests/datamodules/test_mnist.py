"""MNIST from real idx files: small ones that the test writes, and the real ones where they are."""

from __future__ import annotations

import os
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from constrained_diffusion.datamodules.mnist import MNISTDataModule
from constrained_diffusion.runtime.conditions import Labels
from constrained_diffusion.runtime.distribution import install_hint

pytest.importorskip("torchvision", reason="torchvision is not installed")
TRAIN, TEST = 12, 6


def idx(array: np.ndarray) -> bytes:
    """Write unsigned bytes in the idx format: two zeros, type 8, rank, big-endian sizes, data."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A data folder with 12 training and 6 test digits; digit i of each set holds i + 1 in one corner."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", TRAIN), ("t10k", TEST)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = np.arange(count) + 1
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return tmp_path


def corners(clean: torch.Tensor) -> list[int]:
    return (clean[:, 0, 0, 0] * 255).round().int().tolist()


def test_training_and_held_out_rows(digits: Path) -> None:
    data = MNISTDataModule(str(digits), held_out=4, batch_size=3)
    data.prepare_data()
    train, held_out = data.data
    assert len(train) == TRAIN
    assert corners(held_out.__getitems__([0, 1, 2, 3]).clean) == [1, 2, 3, 4]
    assert len(held_out) == 4
    assert data.sample_shape == (1, 28, 28)
    batch = next(iter(data.train_dataloader()))
    assert batch.clean.shape == (3, 1, 28, 28)
    assert batch.clean.dtype == torch.float32
    assert batch.clean.min() >= 0
    assert batch.clean.max() <= 1
    assert corners(batch.clean) == [i + 1 for i in batch.rows.tolist()]
    assert batch.condition is None


def test_labels_come_where_they_are_asked_for(digits: Path) -> None:
    data = MNISTDataModule(str(digits), with_labels=True, batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch.target.tolist() == [i % 10 for i in batch.rows.tolist()]
    assert batch.condition is None


def test_a_conditional_model_is_told_the_labels_and_asked_for_all_digits_in_turn(digits: Path) -> None:
    data = MNISTDataModule(str(digits), conditional=True, batch_size=4, predict_samples=12, conditions=None)
    batch = next(iter(data.train_dataloader()))
    assert batch.condition["class_labels"].tolist() == [i % 10 for i in batch.rows.tolist()]
    assert batch.target is None
    (seeds,) = data.predict_dataloader()
    assert seeds.condition["class_labels"].tolist() == [*range(10), 0, 1]
    data = MNISTDataModule(str(digits), conditional=True, conditions=Labels([3]))
    assert data.condition([5, 6])["class_labels"].tolist() == [3, 3]


def test_padding_puts_the_digit_in_the_middle_of_black(digits: Path) -> None:
    plain, padded = (MNISTDataModule(str(digits), image_size=size).data[0] for size in (28, 32))
    assert padded.clean.shape == (TRAIN, 1, 32, 32)
    assert torch.equal(padded.clean[..., 2:30, 2:30], plain.clean)
    assert padded.clean.sum() == plain.clean.sum()


def test_the_environment_names_the_folder(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSTRAINED_DIFFUSION_DATA", str(digits))
    assert len(MNISTDataModule().data[0]) == TRAIN


def test_a_missing_folder_says_how_to_mend_it(tmp_path: Path) -> None:
    data = MNISTDataModule(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"'.*nowhere' .*set data_dir, .*_DATA, to the folder .*download: true"):
        data.prepare_data()


@pytest.mark.parametrize("kept", [0, 3, 10, 1000])
def test_a_cut_file_is_not_taken_for_whole(digits: Path, kept: int) -> None:
    images = digits / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:kept])
    with pytest.raises(FileNotFoundError, match="not found whole"):
        MNISTDataModule(str(digits)).prepare_data()


@pytest.mark.parametrize("size", [27, 29, 0])
def test_a_size_that_cannot_be_padded_to_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"even number >= 28, got {size}"):
        MNISTDataModule(image_size=size)


def test_without_torchvision_the_command_is_named(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("mnist"))):
        MNISTDataModule(str(digits)).prepare_data()


@pytest.mark.skipif("CONSTRAINED_DIFFUSION_DATA" not in os.environ, reason="CONSTRAINED_DIFFUSION_DATA is not set")
def test_the_real_digits() -> None:
    data = MNISTDataModule(with_labels=True)
    train, held_out = data.data
    assert len(train) == 60_000
    assert len(held_out) == 1024
    assert train.clean.double().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)  # as published
    assert train.target is not None
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(train.target).tolist() == counts
