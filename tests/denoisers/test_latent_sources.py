"""Latent models need their autoencoder, and no other one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.autoencoder import Autoencoder, small_autoencoder
from constrained_diffusion.denoisers.config import denoiser_config
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving


def test_a_checkpoint_of_a_latent_fit_is_no_model_of_pictures(tmp_path: Path, unet: Any, answers: Any) -> None:
    """Its autoencoder comes from a file of its own, and the checkpoint has none."""
    small_autoencoder(3, [8, 16], 4, groups=4).save_pretrained(tmp_path / "vae")  # type: ignore[operator]
    network, codec = unet(in_channels=4, out_channels=4), Autoencoder(str(tmp_path / "vae"))
    denoiser = Denoiser(network, VariancePreserving(torch.linspace(0.99, 0.01, 50)), codec)
    state = {f"networks.ema.{key}": value for key, value in network.state_dict().items()}
    config = denoiser_config(denoiser)
    assert config["latent"] is True
    torch.save({"state_dict": state, "denoiser": config}, tmp_path / "latent.ckpt")
    said = "holds the network of a latent model without its autoencoder .*give the folder .*codec=Autoencoder"
    with pytest.raises(ValueError, match=said):
        PretrainedDenoiser(str(tmp_path / "latent.ckpt"))
    loaded = PretrainedDenoiser(str(tmp_path / "latent.ckpt"), codec=codec)
    assert torch.equal(answers(loaded), answers(denoiser))
    assert loaded.data_shape == (3, 16, 16)


def test_a_pipeline_of_prompts_that_lists_no_autoencoder_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sd"], tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / "vae")
    index = tmp_path / "sd" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "vae": [None, None]}))
    with pytest.raises(ValueError, match="holds the network of a latent model without its autoencoder"):
        PretrainedDenoiser(str(tmp_path / "sd"))
    given = Autoencoder(str(folders["sd"] / "vae"))
    assert PretrainedDenoiser(str(tmp_path / "sd"), codec=given).codec is given


def test_an_autoencoder_of_another_factor_is_refused(folders: dict[str, Path]) -> None:
    def given(*widths: int) -> Autoencoder:
        return Autoencoder(network=small_autoencoder(3, list(widths), 4, groups=4))

    with pytest.raises(ValueError, match=r"stands for 2 pixels in '.*', but for 4 in the autoencoder .* same factor"):
        PretrainedDenoiser(str(folders["sd"]), codec=given(4, 8, 8))
    assert PretrainedDenoiser(str(folders["sd"]), codec=given(4, 8)).data_shape == (3, 16, 16)
