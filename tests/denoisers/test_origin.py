"""An export is a pipeline of its source's class, with all its parts: diffusers opens it, and so do we."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from constrained_diffusion.denoisers.autoencoder import Autoencoder
from constrained_diffusion.denoisers.export import export
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.diffusion.sampler import Sampler, sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers

KINDS = ["sd", "sdxl", "sd3", "flux", "pixart", "sana", "dit", "ldm", "ddim", "consistency"]


def trained(denoiser: PretrainedDenoiser) -> Any:
    network = copy.deepcopy(denoiser.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    return network


def answer(denoiser: PretrainedDenoiser, network: Any = None) -> Tensor:
    shape = denoiser.sample_shape
    condition = denoiser.encode(["a duck"]) if denoiser.has_prompts else None
    if type(denoiser.network).__name__ == "DiTTransformer2DModel":
        condition = {"class_labels": torch.tensor([3])}
    z = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = sample(denoiser.predictor(condition, network), denoiser.noise_schedule, z, Sampler(steps=1))
        return denoiser.codec.decode(found)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_has_the_pipelines_class_and_all_its_parts(folders: Any, tmp_path: Path, kind: str) -> None:
    shape = (4, 8, 8) if kind == "flux" else None
    denoiser = PretrainedDenoiser(str(folders[kind]), sample_shape=shape)
    network = trained(denoiser)
    written = export(denoiser, tmp_path / "export", network)
    again, source = (diffusers.DiffusionPipeline.from_pretrained(folder) for folder in (written, folders[kind]))
    assert type(again) is type(source)
    assert type(again.scheduler) is type(source.scheduler)
    assert dict(again.scheduler.config) == dict(source.scheduler.config)
    listed = json.loads((folders[kind] / "model_index.json").read_text())
    assert {key for key, part in listed.items() if key[0] != "_" and isinstance(part, list) and part[0]} <= {
        path.name for path in written.iterdir()
    }
    mine = getattr(again, "unet", None) or again.transformer
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), network.parameters(), strict=True))
    reopened = PretrainedDenoiser(str(written))
    assert reopened.sample_shape == denoiser.sample_shape
    torch.testing.assert_close(answer(reopened), answer(denoiser, network), rtol=1e-5, atol=1e-5)
    assert export(reopened, written, network) == written  # replaces what an earlier one wrote


def test_what_was_replaced_is_written(folders: Any, tmp_path: Path) -> None:
    other = Autoencoder(network=diffusers.AutoencoderTiny(**tiny()))
    schedule = PretrainedDenoiser(str(folders["turbo"])).noise_schedule
    denoiser = PretrainedDenoiser(str(folders["sd"]), codec=other, noise_schedule=schedule)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(export(denoiser, tmp_path / "export"))
    assert isinstance(pipeline.vae, diffusers.AutoencoderTiny)
    assert isinstance(pipeline.scheduler, diffusers.EulerAncestralDiscreteScheduler)


def tiny() -> dict[str, Any]:
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return {**blocks, "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "latent_channels": 4}


def test_a_variant_is_read_by_its_name_and_exported_without(folders: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folders["sd"], source)
    for file in [*source.glob("*/*.safetensors")]:
        half = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(half, file.with_name(file.name.replace(".", ".fp16.", 1)), {"format": "pt"})
        file.unlink()
    with pytest.raises(ValueError, match=r"unet' holds weights \(diffusion_pytorch_model.fp16.safetensors\), but none"):
        PretrainedDenoiser(str(source))
    with pytest.raises(ValueError, match="none of the variant 'bf16': give variant='fp16'"):
        PretrainedDenoiser(str(source), variant="bf16")
    denoiser = PretrainedDenoiser(str(source), variant="fp16")
    assert {p.dtype for p in denoiser.parameters()} == {torch.float32}
    reopened = PretrainedDenoiser(str(export(denoiser, tmp_path / "export")))
    torch.testing.assert_close(answer(reopened), answer(denoiser), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["ddim", "sd", "sdxl", "turbo", "lcm", "consistency"])
def test_a_bare_network_keeps_its_sampler_through_an_export(folders: Any, tmp_path: Path, kind: str) -> None:
    """Without a pipeline's index: what clips, where the steps are, and where the last one ends."""
    shutil.copytree(folders[kind] / "unet", tmp_path / "bare")
    shutil.copytree(folders[kind] / "scheduler", tmp_path / "bare" / "scheduler")
    denoiser = PretrainedDenoiser(str(tmp_path / "bare"))
    assert denoiser.origin is None
    again = PretrainedDenoiser(str(export(denoiser, tmp_path / "export")))
    assert again.noise_schedule.sampler_settings == denoiser.noise_schedule.sampler_settings
