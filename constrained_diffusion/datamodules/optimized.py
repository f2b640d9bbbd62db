"""Align, then distil: the samples that noise optimisation found, as a fine-tuning set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows


class OptimizedDataModule(DiffusionDataModule):
    """The samples in the folder `noise` of a run of `DirectNoiseOptimization`, in the order of their names.

    Args:
        run: the run's folder, such as `runs/dno_mnist/latest`.
        held_out: how many of them, the last ones, are kept for the held-out loss.
        kwargs: see `DiffusionDataModule`.

    Raises:
        FileNotFoundError: the folder holds no samples.
        ValueError: there are not more than `held_out`, a file is damaged, or the samples differ in shape.
    """

    def __init__(self, run: str, held_out: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run, self.held_out = run, held_out

    def build(self) -> tuple[TensorRows, TensorRows]:
        files = sorted((Path(self.run) / "noise").glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(
                f"'{self.run}' holds no optimised samples: expected '{self.run}/noise/*.safetensors'; run `lightning "
                "predict` with a DirectNoiseOptimization config first, and name its run."
            )
        if not 1 <= self.held_out < len(files):
            raise ValueError(
                f"'{self.run}' holds {len(files)} samples, of which {self.held_out} are to be held out: expected at "
                "least 1 of them, and fewer than all; optimise more samples, or lower held_out."
            )
        samples = [untrusted.read_tensors(file, "sample")[0]["sample"] for file in files]
        shape = samples[0].shape
        if other := next((file for file, sample in zip(files, samples, strict=True) if sample.shape != shape), None):
            raise ValueError(
                f"'{files[0]}' holds a sample of shape {tuple(shape)}, and '{other}' one of another: expected samples "
                "of one run; take the other out."
            )
        clean = torch.stack(samples)
        return TensorRows(clean[: -self.held_out]), TensorRows(clean[-self.held_out :])
