"""Safetensors files, zoo names and hub ids as sources of a pretrained denoiser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.config import denoiser_config
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.denoisers.sources import read_schedule_for
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.runtime import assets

SCHEDULE = {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
BAD_WEIGHTS = "truncated or from another model"


@pytest.fixture
def reference(unet: Any, answers: Any) -> Any:
    """The answers of the denoiser that the `pipeline` folder holds."""
    return answers(Denoiser(unet(), DiffusersSchedule(SCHEDULE)))


# --------------------------------------------------------------------------------------------------------- safetensors


def test_safetensors_with_a_network(tmp_path: Path, unet: Any, reference: Any, answers: Any) -> None:
    save_file(unet(0).state_dict(), tmp_path / "w.safetensors")
    source, schedule = str(tmp_path / "w.safetensors"), DiffusersSchedule(SCHEDULE)
    assert torch.equal(answers(PretrainedDenoiser(source, network=unet(1), noise_schedule=schedule)), reference)
    with pytest.raises(ValueError, match=r"does not tell how to make its network \(class unknown\)"):
        PretrainedDenoiser(source, noise_schedule=schedule)
    with pytest.raises(ValueError, match="no noise schedule"):
        PretrainedDenoiser(source, network=unet(1))


@pytest.mark.parametrize("place", ["twin", "folder", "metadata"])
def test_safetensors_with_their_config(tmp_path: Path, unet: Any, reference: Any, answers: Any, place: str) -> None:
    denoiser = Denoiser(unet(0), DiffusersSchedule(SCHEDULE))
    config = json.dumps(denoiser_config(denoiser))
    metadata = {"constrained_diffusion": config} if place == "metadata" else None
    save_file(denoiser.network.state_dict(), tmp_path / "w.safetensors", metadata)
    if metadata is None:
        (tmp_path / ("w.json" if place == "twin" else "constrained_diffusion.json")).write_text(config)
    assert torch.equal(answers(PretrainedDenoiser(str(tmp_path / "w.safetensors"))), reference)


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_truncated_safetensors_are_refused(tmp_path: Path, unet: Any, kept: int) -> None:
    save_file(unet(0).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:kept])
    with pytest.raises(ValueError, match=BAD_WEIGHTS):
        PretrainedDenoiser(str(tmp_path / "w.safetensors"), network=unet(1), noise_schedule=VariancePreserving([0.5]))


def test_a_network_that_expects_u_itself_is_told_so() -> None:
    size = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1}
    size |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 4, "cross_attention_dim": 8}
    network = diffusers.SanaTransformer2DModel(sample_size=16, caption_channels=8, timestep_scale=0.001, **size)
    schedule = read_schedule_for(network, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert schedule.network_time(torch.tensor([500.0]).double()).tolist() == [0.5]


# ----------------------------------------------------------------------------------------------------------- names, hub


def test_a_zoo_name_comes_first(pipeline: Path, monkeypatch: pytest.MonkeyPatch, reference: Any, answers: Any) -> None:
    (pipeline / "CARD.md").write_text("a card")
    monkeypatch.setattr(assets, "FOLDER", pipeline.parent)
    monkeypatch.chdir(pipeline.parent.parent)
    denoiser = PretrainedDenoiser("pipeline")
    assert torch.equal(answers(denoiser), reference)
    assert denoiser.folder == pipeline


@pytest.mark.parametrize("source", ["mnist_denoisr", "runs/last.ckpt", "a/b/c", "weights.safetensors"])
def test_what_is_nowhere_is_refused_with_the_alternatives(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"at '{source}': expected a zoo name .*diffusers folder, a .ckpt"):
        PretrainedDenoiser(source)


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a folder, a .ckpt, .safetensors, .pt, .pth, .bin file, got '.*gguf'"):
        PretrainedDenoiser(str(tmp_path / "weights.gguf"))


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_that_cannot_be_had_offline(offline_hub: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'owner/name' is no file or folder here, and could not be had"):
        PretrainedDenoiser("owner/name")


def test_a_hub_id_in_the_cache(offline_hub: Path, pipeline: Path, reference: Any, answers: Any) -> None:
    repository, commit = offline_hub / "models--owner--name", "0" * 40
    shutil.copytree(pipeline, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert torch.equal(answers(PretrainedDenoiser("owner/name")), reference)
