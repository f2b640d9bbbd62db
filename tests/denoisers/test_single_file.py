"""Single files in the original layout, checkpoints and state dicts of other trainers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.sampler import Sampler, sample
from constrained_diffusion.fine_tuning.networks import Networks

SCHEDULE = {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET = [  # of one layer per block, the names of diffusers and those of CompVis' repository
    (r"time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"conv_in", lambda m: "input_blocks.0.0"),
    (r"conv_norm_out", lambda m: "out.0"),
    (r"conv_out", lambda m: "out.2"),
    (r"down_blocks\.(\d)\.resnets\.0\.(\w+)", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0.{RESNET[m[2]]}"),
    (r"down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1"),
    (r"down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 + 2 * int(m[1])}.0.op"),
    (r"up_blocks\.(\d)\.resnets\.(\d)\.(\w+)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0.{RESNET[m[3]]}"),
    (r"up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1"),
    (r"up_blocks\.0\.upsamplers\.0\.conv", lambda m: "output_blocks.1.2.conv"),
    (r"mid_block\.resnets\.(\d)\.(\w+)", lambda m: f"middle_block.{2 * int(m[1])}.{RESNET[m[2]]}"),
    (r"mid_block\.attentions\.0", lambda m: "middle_block.1"),
]
VAE = [
    (r"(en|de)coder\.mid_block\.resnets\.(\d)", lambda m: f"{m[1]}coder.mid.block_{int(m[2]) + 1}"),
    (r"(en|de)coder\.mid_block\.attentions\.0\.group_norm", lambda m: f"{m[1]}coder.mid.attn_1.norm"),
    (r"(en|de)coder\.mid_block\.attentions\.0\.to_([qkv])", lambda m: f"{m[1]}coder.mid.attn_1.{m[2]}"),
    (r"(en|de)coder\.mid_block\.attentions\.0\.to_out\.0", lambda m: f"{m[1]}coder.mid.attn_1.proj_out"),
    (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"encoder.down.{m[1]}.block.{m[2]}"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", lambda m: f"encoder.down.{m[1]}.downsample"),
    (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{1 - int(m[1])}.block.{m[2]}"),
    (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{1 - int(m[1])}.upsample"),
    (r"(en|de)coder\.conv_norm_out", lambda m: f"{m[1]}coder.norm_out"),
]


def renamed(state: dict[str, Tensor], names: Any, prefix: str) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        new = next((re.sub("^" + old, to, name) for old, to in names if re.match(old + r"(?=\.|$)", name)), name)
        new = new.replace("conv_shortcut", "nin_shortcut") if prefix == "first_stage_model." else new
        square = prefix == "first_stage_model." and "attn_1" in new and tensor.ndim == 2
        found[prefix + new] = tensor[..., None, None] if square else tensor
    return found


@pytest.fixture
def single(folders: Any, tmp_path: Path) -> Path:
    """The pipeline "sd" as one file, and its configs and tokenizers in the folder of the same name."""
    weights: dict[str, Tensor] = {}
    source = folders["sd"]
    for part, names, prefix in (("unet", UNET, "model.diffusion_model."), ("vae", VAE, "first_stage_model.")):
        weights |= renamed(load_file(source / part / "diffusion_pytorch_model.safetensors"), names, prefix)
    text = load_file(source / "text_encoder" / "model.safetensors")
    text = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}  # by version of transformers
    weights |= {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "one.safetensors")
    shutil.copytree(source, tmp_path / "one", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "one.safetensors"


def answer(denoiser: PretrainedDenoiser) -> Tensor:
    z = torch.randn(1, 1, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        condition = denoiser.encode(["a duck"]) if denoiser.has_prompts else None
        return denoiser.codec.decode(sample(denoiser.predictor(condition), denoiser.noise_schedule, z, Sampler(2)))


def test_a_single_file_is_the_pipeline_that_it_was_made_of(folders: Any, single: Path, tmp_path: Path) -> None:
    expected = answer(PretrainedDenoiser(str(folders["sd"]), 3.0))
    torch.testing.assert_close(answer(PretrainedDenoiser(str(single), 3.0)), expected, rtol=1e-5, atol=1e-5)
    (tmp_path / "one").rename(tmp_path / "other")
    elsewhere = PretrainedDenoiser(str(single), 3.0, config=str(tmp_path / "other"))
    torch.testing.assert_close(answer(elsewhere), expected, rtol=1e-5, atol=1e-5)


def test_adapters_for_a_single_file_are_the_pipeline_s_own(folders: Any, single: Path, tmp_path: Path) -> None:
    networks = Networks(PretrainedDenoiser(str(single)), lora={"r": 2, "target_modules": ["to_q"]})
    networks.export(tmp_path / "export")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folders["sd"])
    pipeline.load_lora_weights(tmp_path / "export")
    assert pipeline.unet.peft_config


def test_a_single_file_without_configs_is_refused(single: Path) -> None:
    shutil.rmtree(single.with_suffix(""))
    with pytest.raises(ValueError, match=r"is a single file in the original layout, .*: put the configs and"):
        PretrainedDenoiser(str(single))
    with pytest.raises(ValueError, match="config='nowhere' is no folder of a pipeline: expected the model_index.json"):
        PretrainedDenoiser(str(single), config="nowhere")


@pytest.mark.parametrize(
    "part", ["model.diffusion_model.middle_block.0.in_layers.2.weight", "first_stage_model.", "cond_"]
)
def test_a_single_file_that_lacks_something_is_refused(single: Path, part: str) -> None:
    save_file({name: t for name, t in load_file(single).items() if not name.startswith(part)}, single)
    with pytest.raises(ValueError, match="one.safetensors' are truncated or from another model"):
        PretrainedDenoiser(str(single))


def test_configs_of_other_kinds_are_refused(single: Path, folders: Any) -> None:
    with pytest.raises(ValueError, match="is of a LDMPipeline, whose single files are not supported"):
        PretrainedDenoiser(str(single), config=str(folders["ldm"]))


# ---------------------------------------------------------------------------------- checkpoints of other trainers


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("nested", [True, False])
def test_weights_of_another_trainer(unet: Any, tmp_path: Path, suffix: str, nested: bool) -> None:
    file, state = tmp_path / f"my{suffix}", {f"model.{key}": value for key, value in unet(0).state_dict().items()}
    state["loss.weight"] = torch.ones(3)
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if nested or suffix == ".ckpt" else state, file)
    settings: dict[str, Any] = {"network": unet(1), "noise_schedule": DiffusersSchedule(SCHEDULE)}
    denoiser = PretrainedDenoiser(str(file), prefix="model.", **settings)
    noisy = torch.ones(1, 1, 8, 8)
    assert torch.equal(denoiser(noisy, torch.tensor([3])), unet(0)(noisy, torch.tensor([3])).sample)
    with pytest.raises(ValueError, match="holds nothing under 'net.', but tensors under 'loss.', 'model.': give what"):
        PretrainedDenoiser(str(file), prefix="net.", **settings)


def test_a_checkpoint_of_another_trainer_without_a_prefix(unet: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {"model.weight": torch.ones(3)}}, tmp_path / "my.ckpt")
    with pytest.raises(ValueError, match=r"holds no denoiser of ours, but tensors under 'model.': .* `prefix`"):
        PretrainedDenoiser(str(tmp_path / "my.ckpt"))
