"""The samples of an earlier run of noise optimisation, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from constrained_diffusion.datamodules import OptimizedDataModule


def test_the_samples_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    for i in range(3):
        save_file({"sample": torch.full((1, 4, 4), float(i))}, tmp_path / "noise" / f"0000{i}-0.safetensors")
    train, held_out = OptimizedDataModule(str(tmp_path)).build()
    assert train.clean[:, 0, 0, 0].tolist() == [0, 1]
    assert held_out.clean[:, 0, 0, 0].tolist() == [2]


def test_damaged_samples_of_an_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    for i, side in enumerate((4, 4, 5)):
        save_file({"sample": torch.zeros(1, side, side)}, tmp_path / "noise" / f"{i}.safetensors")
    with pytest.raises(ValueError, match="0.safetensors' holds a sample of shape .*2.safetensors' one of another"):
        OptimizedDataModule(str(tmp_path)).build()
    save_file({"noise": torch.zeros(1)}, tmp_path / "noise" / "2.safetensors")
    with pytest.raises(ValueError, match="should hold the tensor sample"):
        OptimizedDataModule(str(tmp_path)).build()
    (tmp_path / "noise" / "2.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no complete safetensors file"):
        OptimizedDataModule(str(tmp_path)).build()
