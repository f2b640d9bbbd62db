"""What `predict` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from constrained_diffusion.batch import Seeds
from constrained_diffusion.callbacks import SampleWriter
from constrained_diffusion.runtime.randomness import keyed_normal


class Painter(LightningModule):
    """Draws samples of a shape from their seeds, some outside [0, 1]."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def predict_step(self, batch: Seeds, batch_idx: int) -> Tensor:
        return keyed_normal([(seed,) for seed in batch.seeds.tolist()], self.shape)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        callbacks=[SampleWriter()], default_root_dir=tmp_path, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_and_one_file_of_tensors(trainer: Trainer, tiny_data: Any, tmp_path: Path, channels: int) -> None:
    trainer.predict(
        Painter(channels, 9, 11), tiny_data(predict_samples=11, eval_batch_size=4), return_predictions=False
    )
    folder = tmp_path / "samples"
    written = load_file(folder / "samples-rank0.safetensors")
    expected = keyed_normal([(seed,) for seed in range(11)], (channels, 9, 11))
    assert torch.equal(written["samples"], expected)
    assert written["seeds"].tolist() == list(range(11))
    assert sorted(path.name for path in folder.glob("*.png")) == [f"seed-{seed:06d}.png" for seed in range(11)]
    with Image.open(folder / "seed-000010.png") as image:
        pixels = torch.from_numpy(np.array(image)).reshape(9, 11, channels).permute(2, 0, 1)
    assert torch.equal(pixels, (expected[10].clamp(0, 1) * 255).round().to(torch.uint8))


@pytest.mark.parametrize("shape", [(6,), (4, 3), (2, 9, 9), (3, 10, 6), (4, 10, 4)])
def test_samples_that_are_no_pictures(trainer: Trainer, tiny_data: Any, tmp_path: Path, shape: tuple[int, ...]) -> None:
    trainer.predict(Painter(*shape), tiny_data(predict_samples=3), return_predictions=False)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["samples-rank0.safetensors"]
    assert load_file(tmp_path / "samples" / "samples-rank0.safetensors")["samples"].shape == (3, *shape)


def test_what_the_evaluation_draws_is_written(trainer: Trainer, tiny_data: Any, tmp_path: Path) -> None:
    class Evaluated(Painter):
        class evaluation:  # noqa: N801  # of all its methods, the one that is needed
            @staticmethod
            def pictures(clean: Tensor) -> Tensor:
                return clean.flatten(1)[:, 0, None, None, None].expand(-1, 3, 12, 9)

    trainer.predict(Evaluated(3, 10, 6), tiny_data(predict_samples=3), return_predictions=False)
    assert load_file(tmp_path / "samples" / "samples-rank0.safetensors")["samples"].shape == (3, 3, 10, 6)
    for seed in range(3):
        with Image.open(tmp_path / "samples" / f"seed-{seed:06d}.png") as image:
            assert (image.size, image.mode) == ((9, 12), "RGB")
            shade = keyed_normal([(seed,)], (3, 10, 6)).flatten()[0].clamp(0, 1)
            assert image.getpixel((0, 0)) == (round(float(shade) * 255),) * 3


def test_a_second_predict_neither_holds_nor_loses_the_first(trainer: Trainer, tiny_data: Any, tmp_path: Path) -> None:
    for count in (5, 3, 2):
        trainer.predict(Painter(1, 8, 8), tiny_data(predict_samples=count), return_predictions=False)
    for folder, count in (("samples-1", 5), ("samples-2", 3), ("samples", 2)):
        assert load_file(tmp_path / folder / "samples-rank0.safetensors")["seeds"].tolist() == list(range(count))
        assert len(list((tmp_path / folder).glob("*.png"))) == count
