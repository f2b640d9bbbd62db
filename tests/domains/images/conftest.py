"""A tiny CLIP with its tokenizer, and an aesthetic head for it, with random weights, as files."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, IMAGE_SIZE, LONGEST = 12, 8, 10
LETTERS = "abc"


def write_clip(folder: Path, **config: Any) -> Path:
    """Write a CLIP for 8 x 8 images and texts of a, b and c; `config` is of its CLIPConfig."""
    from transformers import CLIPConfig, CLIPModel

    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower["hidden_act"] = config.pop("hidden_act", "gelu")
    ids = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**tower, **ids, "vocab_size": len(tokens), "max_position_embeddings": LONGEST},
            vision_config={**tower, "image_size": IMAGE_SIZE, "patch_size": 4},
            projection_dim=WIDTH,
            **config,
        )
    )
    for parameter in model.parameters():  # as they begin, the towers hardly look at their input
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def head_weights(width: int = WIDTH) -> dict[str, Tensor]:
    """The head's tensors under the names of the published file, in which the layers 1, 3 and 5 are dropout."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for number, (inputs, outputs) in zip((0, 2, 4, 6, 7), pairwise((width, 1024, 128, 64, 16, 1)), strict=True):
        weights[f"layers.{number}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        weights[f"layers.{number}.bias"] = torch.randn(outputs, generator=generator) / 4
    return weights


def write_head(path: Path) -> Path:
    save_file(head_weights(), path)
    return path


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the tiny CLIP; not to be changed."""
    return str(write_clip(tmp_path_factory.mktemp("rewards") / "clip"))


@pytest.fixture
def new_clip() -> Any:
    """The function `write_clip(folder, **config)`."""
    return write_clip


@pytest.fixture
def published_head() -> dict[str, Tensor]:
    """The tensors of a head for the tiny CLIP."""
    return head_weights()


@pytest.fixture(scope="session")
def transformers_clip(clip_folder: str) -> Any:
    """The same network as transformers itself loads it."""
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(clip_folder).eval()


@pytest.fixture(scope="session")
def tokenizer(clip_folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(clip_folder)
