"""Tiny real networks of diffusers, and what they say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
