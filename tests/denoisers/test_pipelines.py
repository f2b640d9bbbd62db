"""Which pipelines are taken, told from their configs alone: no weights lie in these folders."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from constrained_diffusion.denoisers import families
from constrained_diffusion.denoisers.autoencoder import Autoencoder
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.pipelines import open_folder
from constrained_diffusion.runtime.distribution import install_hint

CLIP = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
T5: dict[str, Any] = {"text_encoder": "T5EncoderModel", "tokenizer": "T5Tokenizer"}
SECOND = {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"}
VIDEO = {"unet": "UNetSpatioTemporalConditionModel", "text_encoder": None}
WAN = {"unet": None, "transformer": "WanTransformer3DModel", "text_encoder": None}
PARTS = {"unet": "UNet2DConditionModel", "scheduler": "PNDMScheduler", **CLIP}


def write(folder: Path, kind: str = "StableDiffusionPipeline", config: Any = None, **parts: str | None) -> Path:
    """Configs of a pipeline; a part that is None is listed as none."""
    listed = {**PARTS, **parts}
    index = {name: ["diffusers", cls] if cls else [None, None] for name, cls in listed.items()}
    network = "transformer" if listed.get("transformer") else "unet"
    if listed[network]:
        (folder / network).mkdir(parents=True)
        content = {"_class_name": listed[network], "in_channels": 4, "out_channels": 4, **(config or {})}
        (folder / network / "config.json").write_text(json.dumps(content))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, "safety_checker": [None, None], **index}))
    return folder


@pytest.mark.parametrize(
    ("kind", "settings", "family"),
    [
        ("StableDiffusionImg2ImgPipeline", {}, "sd"),
        ("StableDiffusionXLPipeline", SECOND, "sdxl"),
        ("DDPMPipeline", {"unet": "UNet2DModel", "text_encoder": None}, None),
        ("PixArtSigmaPipeline", {"unet": None, "transformer": "PixArtTransformer2DModel", **T5}, "pixart"),
    ],
)  # fmt: skip
def test_the_family_is_told_by_network_and_text_encoders(tmp_path: Path, kind: str, settings: Any, family: Any) -> None:
    found = open_folder(write(tmp_path, kind, **settings)).family
    assert (found.name if found else None) == family


def test_older_transformers_are_told_by_their_norm(tmp_path: Path) -> None:
    old = {"unet": None, "transformer": "Transformer2DModel", **T5}
    folder = write(tmp_path, "PixArtAlphaPipeline", {"norm_type": "ada_norm_single"}, **old)
    assert open_folder(folder).family is next(one for one in families.FAMILIES if one.name == "pixart")


@pytest.mark.parametrize(
    ("kind", "message", "settings"),
    [
        ("StableDiffusionPipeline", "has no text_encoder, without which prom", {"text_encoder": None}),
        ("StableDiffusionXLImg2ImgPipeline", "is SDXL's refiner, .* not supported", {"text_encoder": None, **SECOND}),
        ("KandinskyV22Pipeline", "KandinskyV22Pipeline without text encoders, which is not", {"text_encoder": None}),
        ("StableVideoDiffusionPipeline", "around a UNetSpatioTemporal.*Model, which is not supported", VIDEO),
        ("WanPipeline", "around a WanTransformer3DModel, .* or one without prompts around a UNet1DModel or", WAN),
        ("KolorsPipeline", "has a GLM as text_encoder: expected a CLIPTextModel", {"text_encoder": "GLM"}),
        ("VideoPipeline", "whose text encoders are not supported: .* like Stab", {"unet": "UNet3DConditionModel"}),
        ("Some", "has Evil as the tokenizer of its text_encoder: expected a CLIPTokenizer", {"tokenizer": "Evil"}),
        ("VQPipeline", "has no noise predictor: expected a unet or transformer", {"unet": None}),
        ("Some", "lacks its folder vae: expected all parts", {"vae": "AutoencoderKL"}),
    ],
)  # fmt: skip
def test_other_kinds_are_refused(tmp_path: Path, kind: str, message: str, settings: dict[str, str | None]) -> None:
    with pytest.raises(ValueError, match=message):
        open_folder(write(tmp_path, kind, **settings))


def test_a_part_whose_folder_is_gone_is_refused(folders: Any, tmp_path: Path) -> None:
    for gone in ("text_encoder", "tokenizer"):
        shutil.copytree(folders["sd"], tmp_path / gone)
        shutil.rmtree(tmp_path / gone / gone)
        with pytest.raises(ValueError, match=f"has no folder {gone}, without which prompts cannot be encoded"):
            PretrainedDenoiser(str(tmp_path / gone))


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_part_of_a_pipeline_is_no_source(folders: Any, tmp_path: Path, part: str) -> None:
    with pytest.raises(ValueError, match=f"is a part of a pipeline, its .*; give its folder, '{folders['sd']}'"):
        PretrainedDenoiser(str(folders["sd"] / part))
    shutil.copytree(folders["sd"] / part, tmp_path / "alone")
    with pytest.raises(ValueError, match="is a part of a pipeline, its .*; give its folder, the folder above it"):
        PretrainedDenoiser(str(tmp_path / "alone"))


def test_masks_are_refused_by_the_config_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes 9 channels and returns 4: .*inpainting and masks are not supported"):
        open_folder(write(tmp_path, config={"in_channels": 9}))


def test_truncated_text_encoders_are_refused(folders: Any, tmp_path: Path) -> None:
    shutil.copytree(folders["sd"], tmp_path / "pipeline")
    file = tmp_path / "pipeline" / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match="text_encoder' are truncated or from another model"):
        PretrainedDenoiser(str(tmp_path / "pipeline"))


def test_configs_that_claim_more_than_the_weights_hold_are_refused(folders: Any, tmp_path: Path) -> None:
    shutil.copytree(folders["sd"], tmp_path / "pipeline")
    for part, key in (("text_encoder", "intermediate_size"), ("vae", "latent_channels")):
        file = tmp_path / "pipeline" / part / "config.json"
        honest = file.read_text()
        file.write_text(json.dumps({**json.loads(honest), key: 10**7}))
        with pytest.raises(ValueError, match=f"{part}' .*truncated or from another model"):
            PretrainedDenoiser(str(tmp_path / "pipeline"))
        file.write_text(honest)


def test_the_missing_extra_is_named(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders["sd"]
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("text-to-image"))):
        PretrainedDenoiser(str(folder))


def test_a_pipeline_with_code_of_its_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers would import the library that a part names, or take it from a file in the part's folder."""
    folder = write(tmp_path / "pipeline")
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('executed').touch()\nclass VAE: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["evil", "VAE"]}))
    with pytest.raises(ValueError, match="names a part of 'evil', whose code is not trusted: expected parts of diff"):
        PretrainedDenoiser(str(folder))
    assert not Path("executed").exists()
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]  # which is never loaded
    (folder / "model_index.json").write_text(json.dumps(index))
    assert open_folder(folder).family is not None


def test_a_file_of_code_in_a_parts_folder_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "unet" / "diffusers.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=r"brings code, 'diffusers.py', .*: expected weights and configs alone"):
        PretrainedDenoiser(str(folder))


def test_an_autoencoder_of_other_latents_is_refused(folders: Any) -> None:
    with pytest.raises(ValueError, match=r"makes latents of 3 channels, but the denoiser works on \(4, 8, 8\)"):
        PretrainedDenoiser(str(folders["sd"]), codec=Autoencoder(str(folders["ldm"] / "vqvae")))


# ------------------------------------------------------------------------------------------------------------ guidance


def test_guidance_that_cannot_be_is_refused(folders: Any) -> None:
    shape = (4, 8, 8)
    with pytest.raises(ValueError, match=r"this FLUX was distilled without guidance .* leave guidance_scale at 1"):
        PretrainedDenoiser(str(folders["schnell"]), 3.5, sample_shape=shape)
    with pytest.raises(ValueError, match="guidance_scale must be at least 0, got -1"):
        PretrainedDenoiser(str(folders["sd"]), -1.0)
    with pytest.raises(ValueError, match="guidance_scale is 2.0, but the model says nothing of an empty condition"):
        PretrainedDenoiser(str(folders["consistency"]), 2.0)
    with pytest.raises(ValueError, match="negative_prompt is 'blur', but the model takes no prompts"):
        PretrainedDenoiser(str(folders["ldm"]), negative_prompt="blur")


def test_distilled_guidance_is_told_and_costs_one_branch(folders: Any) -> None:
    denoiser, rows = PretrainedDenoiser(str(folders["flux"]), 3.5, sample_shape=(4, 8, 8)), []
    denoiser.network.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    told = denoiser.encode(["a duck"])
    assert told["guidance"].tolist() == [3.5]
    denoiser.predictor(told)(torch.zeros(1, 4, 8, 8), torch.tensor([500.0]))
    assert rows == [1]
    with pytest.raises(ValueError, match="FluxTransformer2DModel needs encoder_hidden_states, guidance, pooled"):
        denoiser.check_condition(None)
    assert PretrainedDenoiser(str(folders["flux"])).sample_shape == (4, 128, 128)
