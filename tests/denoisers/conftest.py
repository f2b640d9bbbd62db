"""Tiny real networks of diffusers, and what they say."""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from constrained_diffusion.denoisers.adapter import Denoiser


def make_unet(seed: int = 0, **settings: Any) -> UNet2DModel:
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return UNet2DModel(**{**defaults, **settings}).eval()


@pytest.fixture
def unet() -> Any:
    """The factory `make_unet(seed=0, **settings)` of random networks of about 30,000 parameters, `(B, 1, 8, 8)`."""
    return make_unet


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A folder that diffusers itself wrote."""
    scheduler = DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    DDPMPipeline(make_unet(), scheduler).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def diffusers_log() -> Iterator[list[logging.LogRecord]]:
    """What diffusers warns of; its logger does not propagate, so that pytest's `caplog` would see nothing."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("diffusers").addHandler(handler)
    yield records
    logging.getLogger("diffusers").removeHandler(handler)


@pytest.fixture
def answers() -> Any:
    """`answers(denoiser)`: its outputs, noises and clean samples on two fixed inputs, in one tensor."""

    def ask(denoiser: Denoiser) -> Tensor:
        noisy = torch.randn(2, *denoiser.sample_shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return torch.stack(denoiser.eval().predict(noisy, torch.tensor([3, 40])))

    return ask


def tokenizer(transformers: Any, folder: Path) -> Any:
    """A CLIP tokenizer that knows the letters alone."""
    words = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def text_encoder(transformers: Any, name: str) -> Any:
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return getattr(transformers, name)(transformers.CLIPTextConfig(projection_dim=6, **size, **tokens))


def conditional_unet(**settings: Any) -> Any:
    size = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    blocks = {"down_block_types": down, "up_block_types": up, "attention_head_dim": 2}
    return diffusers.UNet2DConditionModel(**size, **blocks, **settings)


def vae() -> Any:
    size = {"block_out_channels": (4, 8), "latent_channels": 4, "norm_num_groups": 2, "scaling_factor": 0.25}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(**size, **blocks)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines as diffusers saves them, with the schedulers that the real ones come with."""
    transformers = pytest.importorskip("transformers", reason="the extra `rewards` is not installed")
    torch.manual_seed(0)
    top = tmp_path_factory.mktemp("pipelines")
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    shared = {
        "vae": vae(),
        "tokenizer": tokenizer(transformers, top / "tokens"),
        "text_encoder": text_encoder(transformers, "CLIPTextModel"),
    }
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    sd = diffusers.StableDiffusionPipeline(
        unet=conditional_unet(cross_attention_dim=8),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, **betas),
        **{**shared, **unused},
    )
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    other = {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    sdxl = diffusers.StableDiffusionXLPipeline(
        unet=conditional_unet(cross_attention_dim=16, projection_class_embeddings_input_dim=6 + 6 * 4, **added),
        scheduler=diffusers.EulerDiscreteScheduler(**betas, **other),
        text_encoder_2=text_encoder(transformers, "CLIPTextModelWithProjection"),
        tokenizer_2=shared["tokenizer"],
        **shared,
    )
    for kind, pipeline in (("sd", sd), ("sdxl", sdxl)):
        pipeline.save_pretrained(top / kind)
    return {kind: top / kind for kind in ("sd", "sdxl")}
