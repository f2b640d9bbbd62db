"""Which pipelines are taken, told from their configs alone: no weights lie in these folders."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from constrained_diffusion.denoisers import pipelines
from constrained_diffusion.runtime.distribution import install_hint

PARTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
    "scheduler": "PNDMScheduler",
}


def write(folder: Path, kind: str = "StableDiffusionPipeline", unet: Any = None, **parts: str | None) -> str:
    """Configs of a pipeline; a part that is None is left out."""
    index = {name: ["diffusers", cls] for name, cls in {**PARTS, **parts}.items() if cls}
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps({"in_channels": 4, "out_channels": 4, **(unet or {})}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, "safety_checker": [None, None], **index}))
    return str(folder)


def test_a_second_text_encoder_makes_it_sdxl(tmp_path: Path) -> None:
    for name, more in {"one": {}, "two": {"text_encoder_2": "CLIPTextModelWithProjection"}}.items():
        (tmp_path / name).mkdir()
        assert pipelines.is_xl(write(tmp_path / name, **more)) == (name == "two")


@pytest.mark.parametrize(
    ("kind", "came", "settings"),
    [
        ("StableDiffusion3Pipeline", "no unet", {"unet": None, "transformer": "SD3Transformer2DModel"}),
        ("StableDiffusionXLImg2ImgPipeline", "no text_encoder", {"text_encoder": None}),
        ("IFPipeline", "no vae", {"vae": None}),
        ("KolorsPipeline", "a ChatGLMModel as text_encoder", {"text_encoder": "ChatGLMModel"}),
        ("TextToVideoSDPipeline", "a UNet3DConditionModel as unet", {"unet": "UNet3DConditionModel"}),
        ("Some", "the flow-matching FlowMatchEuler", {"scheduler": "FlowMatchEulerDiscreteScheduler"}),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, kind: str, came: str, settings: dict[str, str | None]) -> None:
    parts = {**PARTS, **settings}
    source = write(tmp_path, kind)
    index = {name: ["diffusers", cls] if cls else [None, None] for name, cls in parts.items()}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))
    with pytest.raises(ValueError, match=f"expected a Stable Diffusion .* is a {kind} with {came}.*; use one like"):
        pipelines.load(source)


@pytest.mark.parametrize(
    ("unet", "came"),
    [
        ({"in_channels": 9}, "a unet that takes 9 channels and returns 4, as for inpainting"),
        ({"time_cond_proj_dim": 256}, "a unet that takes the guidance scale as an input"),
    ],
)
def test_networks_that_want_more_than_latents_are_refused(tmp_path: Path, unet: Any, came: str) -> None:
    with pytest.raises(ValueError, match=f"is a StableDiffusionPipeline with {came}; use one like"):
        pipelines.load(write(tmp_path, unet=unet))


def test_what_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    for source in (tmp_path, tmp_path / "weights.safetensors", tmp_path / "nowhere"):
        with pytest.raises(
            FileNotFoundError, match=r"is no diffusers pipeline: .* model_index.json .* from_single_file"
        ):
            pipelines.load(str(source))


def test_a_pipeline_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cannot be read \(.+\): expected all of its parts, with weights of the variant"
    ):
        pipelines.load(write(tmp_path), variant="fp16")


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("text-to-image"))):
        pipelines.load(write(tmp_path))


def test_a_pipeline_with_code_of_its_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers would import the library that a part names, or take it from a file in the part's folder."""
    folder = Path(write(tmp_path))
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('executed').touch()\nclass VAE: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["evil", "VAE"]}))
    with pytest.raises(
        ValueError, match="names a part of 'evil', whose code is not trusted: expected parts of diffusers"
    ):
        pipelines.load(str(folder))
    assert not Path("executed").exists()
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]  # which is never loaded
    (folder / "model_index.json").write_text(json.dumps(index))
    assert not pipelines.is_xl(str(folder))


def test_a_file_of_code_in_a_parts_folder_is_refused(tmp_path: Path) -> None:
    folder = Path(write(tmp_path))
    (folder / "unet" / "diffusers.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=r"brings code, 'diffusers.py', .*: expected weights and configs alone"):
        pipelines.is_xl(str(folder))
