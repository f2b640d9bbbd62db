"""The folder of the first rank is the folder of all; tests/test_cli_torchrun.py has real ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from constrained_diffusion.callbacks import SharedRunFolder
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion


class Reads(Callback):
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = trainer.default_root_dir


def test_one_rank_keeps_its_folder(tiny_denoiser: Any, tiny_data: Any, fit: Any, tmp_path: Path) -> None:
    trainer = fit(ConstrainedDiffusion(tiny_denoiser()), tiny_data(), callbacks=[SharedRunFolder()], max_steps=0)
    assert trainer.default_root_dir == str(tmp_path)


def test_the_first_rank_s_folder_is_there_before_other_callbacks_read_it(
    tiny_denoiser: Any, tiny_data: Any, fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def broadcast(self: object, value: Any, src: int = 0) -> Any:
        asked.append((value, src))
        return "of the first rank"

    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.broadcast", broadcast)
    reads = Reads()
    trainer = fit(ConstrainedDiffusion(tiny_denoiser()), tiny_data(), callbacks=[SharedRunFolder(), reads], max_steps=0)
    assert asked[0] == (str(tmp_path), 0)  # Lightning broadcasts other things later
    assert reads.folder == trainer.default_root_dir == "of the first rank"
