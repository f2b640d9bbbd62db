"""A picture for each condition: what it drew before above, and what it draws after below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from constrained_diffusion.callbacks import AskedGrids
from constrained_diffusion.callbacks.output.sample_grid import cell_origin
from constrained_diffusion.runtime.conditions import Labels, Prompts


class Module:
    """Draws grey squares: the seed / 100, and 0.5 more where the weights are fine-tuned."""

    evaluation = None

    def __init__(self, constrained: bool) -> None:
        self.steering = SimpleNamespace(names=["g"] if constrained else [])

    def sample(self, seeds: Sequence[int], weights: str) -> Tensor:
        grey = torch.tensor([seed / 100 + 0.5 * (weights == "ema") for seed in seeds])
        return grey.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def drawn(conditions: Any, folder: Path, constrained: bool = True, samples: int = 2) -> dict[str, Image.Image]:
    data = SimpleNamespace(conditions=conditions)
    trainer: Any = SimpleNamespace(datamodule=data, is_global_zero=True, default_root_dir=str(folder), loggers=[])
    AskedGrids(samples).on_test_end(trainer, Module(constrained))
    return {file.name: Image.open(file).convert("L") for file in sorted(folder.rglob("*.png"))}


def test_each_label_has_its_own_seeds_before_and_after(tmp_path: Path) -> None:
    found = drawn(Labels([4, 7]), tmp_path)
    assert list(found) == ["000-4.png", "001-7.png"]
    for name, seeds in (("000-4.png", [0, 2]), ("001-7.png", [1, 3])):
        pixels = np.asarray(found[name])
        for place, seed in enumerate([*seeds, *(seed + 50 for seed in seeds)]):
            x, y = cell_origin(place, 2, 8, 8, 2)
            assert pixels[y + 5, x + 5] == round(seed / 100 * 255)


def test_a_prompt_becomes_a_file_name(tmp_path: Path) -> None:
    found = drawn(Prompts(["a white/duck, ../ flying!"]), tmp_path, constrained=False)
    assert list(found) == ["000-a-white-duck-flying.png"]


def test_without_conditions_nothing_is_drawn(tmp_path: Path) -> None:
    assert drawn(None, tmp_path) == {}


def test_at_least_one_sample_is_drawn() -> None:
    with pytest.raises(ValueError, match="at least one sample of each condition, got 0"):
        AskedGrids(0)
