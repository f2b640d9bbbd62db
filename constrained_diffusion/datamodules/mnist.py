"""MNIST through torchvision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.conditions import Labels
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows
from constrained_diffusion.runtime.distribution import needs_extra


class MNISTDataModule(DiffusionDataModule):
    """The 60,000 training and 10,000 test digits, `(1, 28, 28)` in [0, 1], with their labels.

    Args:
        data_dir: the folder that holds (or shall hold) `MNIST/raw`; the environment variable CONSTRAINED_DIFFUSION_DATA
            when not given, else `data`.
        download: fetch the files from torchvision's mirrors where they are missing.
        image_size: 28, or larger to pad with black (32 for networks with five downsamplings).
        with_labels: keep the labels in `Batch.target`, for classifiers.
        conditional: condition the denoiser on the labels, as `class_labels`; by default samples of evaluation are asked
            for in turn, seed s for the digit s modulo 10.
        held_out: number of test digits used for the held-out loss.
        kwargs: see `DiffusionDataModule`.

    Raises:
        FileNotFoundError: the files are not there and download is off, or the download failed, or a file is damaged.
        ImportError: torchvision is not installed.
        ValueError: the image size is below 28 or odd.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        download: bool = False,
        image_size: int = 28,
        with_labels: bool = False,
        conditional: bool = False,
        held_out: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if conditional and self.conditions is None:
            self.conditions = Labels(10)
        if image_size < 28 or image_size % 2:
            raise ValueError(f"image_size must be an even number >= 28, got {image_size}.")
        self.data_dir = data_dir or os.environ.get("CONSTRAINED_DIFFUSION_DATA", "data")
        self.download, self.image_size, self.with_labels, self.held_out = download, image_size, with_labels, held_out
        self.conditional = conditional

    def prepare_data(self) -> None:
        self._digits(train=True)

    def build(self) -> tuple[TensorRows, TensorRows]:
        return self._digits(train=True), self._digits(train=False, count=self.held_out)

    def _digits(self, train: bool, count: int | None = None) -> TensorRows:
        with needs_extra("mnist", "MNIST needs torchvision"):
            from torchvision.datasets import MNIST
        try:
            for pickled in Path(self.data_dir, "MNIST", "processed").glob("*.pt"):  # which torchvision prefers
                untrusted.check_archive(pickled)
            digits = MNIST(self.data_dir, train=train, download=self.download)
            if digits.data.shape != (len(digits.targets), 28, 28) or not 0 <= int(digits.targets.min()) <= 9:
                raise ValueError(f"images of shape {tuple(digits.data.shape)} with {len(digits.targets)} labels")
        except Exception as error:  # what torchvision raises for absent, cut and damaged files has no common base
            raise FileNotFoundError(
                f"MNIST was not found whole under '{self.data_dir}' (expected MNIST/raw/*-ubyte there): set data_dir, "
                "or the environment variable CONSTRAINED_DIFFUSION_DATA, to the folder that holds MNIST/, or set "
                f"download: true on a machine with network ({type(error).__name__}: {error})."
            ) from error
        pad = (self.image_size - 28) // 2
        images = torch.nn.functional.pad(digits.data[:count, None], (pad, pad, pad, pad))
        labels = digits.targets[:count]
        told = {"class_labels": labels} if self.conditional else None
        return TensorRows(images, told, labels if self.with_labels else None)
