"""Files of adapters: a fresh pipeline of diffusers with ours computes what our EMA network computes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.lora_files import LORA_NAME, load_lora, save_lora, takes_lora
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.fine_tuning.networks import Networks

pytest.importorskip("peft", reason="the extra `lora` is not installed")

KINDS = ["sd", "sdxl", "sd3", "flux"]
CLASSES = dict(zip(KINDS, ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux"), strict=True))
# alpha is not r, and in one layer both are others: neither is in the tensors' names
SETTINGS = {"r": 2, "lora_alpha": 5, "target_modules": ["to_q", "to_v"], "init_lora_weights": False}
SETTINGS |= {"rank_pattern": {"to_v": 3}, "alpha_pattern": {"to_v": 1.5}}
UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
UNET |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 2}
UNET |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
DIT = {"patch_size": 1, "in_channels": 4, "num_layers": 1, "joint_attention_dim": 8, "pooled_projection_dim": 6}


def make_network(kind: str) -> Any:
    torch.manual_seed(0)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    heads = {"attention_head_dim": 16, "num_attention_heads": 2}
    made = {
        "sd": lambda: diffusers.UNet2DConditionModel(cross_attention_dim=8, **UNET),
        "sdxl": lambda: diffusers.UNet2DConditionModel(
            cross_attention_dim=8, projection_class_embeddings_input_dim=6 + 6 * 4, **added, **UNET
        ),
        "sd3": lambda: diffusers.SD3Transformer2DModel(
            sample_size=8, caption_projection_dim=32, out_channels=4, pos_embed_max_size=8, **heads, **DIT
        ),
        "flux": lambda: diffusers.FluxTransformer2DModel(num_single_layers=1, axes_dims_rope=(4, 4, 8), **heads, **DIT),
    }
    return made[kind]().eval()


def make_pipeline(kind: str) -> Any:
    """A pipeline of the kind's class around a network as it was given."""
    cls = getattr(diffusers, f"{CLASSES[kind]}Pipeline")
    parts = ("vae", "text_encoder", "tokenizer", "scheduler")
    more = {"sd": ("safety_checker", "feature_extractor"), "sdxl": ("text_encoder_2", "tokenizer_2")}
    more |= {"flux": more["sdxl"], "sd3": (*more["sdxl"], "text_encoder_3", "tokenizer_3")}
    given = dict.fromkeys((*parts, *more[kind]))
    if kind == "sd":
        given["requires_safety_checker"] = False  # type: ignore[assignment]
    name = "unet" if kind in ("sd", "sdxl") else "transformer"
    return cls(**{**given, name: make_network(kind)}), name


def ask(kind: str, network: Any) -> Tensor:
    """What the network answers to fixed inputs."""
    draw = torch.Generator().manual_seed(1)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    noisy, text, pooled, time = values(2, 4, 8, 8), values(2, 5, 8), values(2, 6), torch.tensor([3.0, 700.0])
    told: dict[str, Any] = {"encoder_hidden_states": text}
    if kind == "sdxl":
        told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.ones(2, 6)}
    if kind in ("sd3", "flux"):
        told["pooled_projections"] = pooled
    if kind == "flux":
        noisy, time = noisy.flatten(2).mT, time / 1000
        told |= {"img_ids": values(64, 3), "txt_ids": torch.zeros(5, 3)}
    with torch.no_grad():
        answer: Tensor = network(noisy, timestep=time, **told).sample
    return answer


def make_denoiser(kind: str, network: Any = None) -> Denoiser:
    schedule = VariancePreserving([0.9, 0.5, 0.1])
    denoiser = Denoiser(network or make_network(kind), schedule, sample_shape=(4, 8, 8))
    denoiser.pipeline_class = f"{CLASSES[kind]}Pipeline"
    return denoiser


@pytest.fixture(scope="module")
def fitted() -> Callable[[str], Networks]:
    """`fitted(kind)`: networks whose adapters were moved, and whose EMA followed half way."""

    def make(kind: str, **settings: Any) -> Networks:
        networks = Networks(make_denoiser(kind), 0.5, {**SETTINGS, **settings})
        with torch.no_grad():
            for parameter in networks.trained.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        networks.update_ema()
        return networks

    return make


def difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_with_the_file_is_our_average(kind: str, fitted: Any, tmp_path: Path) -> None:
    networks = fitted(kind)
    networks.export(tmp_path / "export")
    pipeline, name = make_pipeline(kind)
    assert difference(ask(kind, getattr(pipeline, name)), ask(kind, networks.ema)) > 1e-2  # without them it is not
    pipeline.load_lora_weights(str(tmp_path / "export"))
    assert difference(ask(kind, getattr(pipeline, name)), ask(kind, networks.ema)) < 1e-5
    assert difference(ask(kind, networks.trained), ask(kind, networks.ema)) > 1e-2
    assert {part.partition(".")[0] for part in load_file(tmp_path / "export" / LORA_NAME)} == {name}
    assert json.loads((tmp_path / "export/constrained_diffusion.json").read_text()) == {
        "pipeline_class": f"{CLASSES[kind]}Pipeline",
        "adapters": LORA_NAME,
        "network": {"class": type(networks.ema).__name__},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_same_network(kind: str, fitted: Any, tmp_path: Path) -> None:
    networks = fitted(kind)
    networks.export(tmp_path / "export", merge_lora=True)
    read = type(make_network(kind)).from_pretrained(tmp_path / "export")
    assert difference(ask(kind, read), ask(kind, networks.ema)) < 1e-5


def test_the_average_of_a_checkpoint_is_written_in_place_of_the_present_one(fitted: Any, tmp_path: Path) -> None:
    networks = fitted("sd")
    earlier, expected = {k: v.clone() for k, v in networks.ema.state_dict().items()}, ask("sd", networks.ema)
    networks.update_ema()
    adapters = {name: value for name, value in earlier.items() if name not in networks.given}
    for merged in (False, True):
        networks.export(tmp_path / str(merged), adapters, merge_lora=merged)
    pipeline, _ = make_pipeline("sd")
    pipeline.load_lora_weights(str(tmp_path / "False"))
    assert difference(ask("sd", pipeline.unet), expected) < 1e-5
    read = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "True")
    assert difference(ask("sd", read), expected) < 1e-5


# diffusers' own way to load a second file: peft warns that there is a first one
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_adapters_that_the_model_came_with_are_part_of_the_frozen_model(kind: str, fitted: Any, tmp_path: Path) -> None:
    fitted(kind).export(tmp_path / "given")
    pipeline, name = make_pipeline(kind)
    pipeline.load_lora_weights(str(tmp_path / "given"))
    given = ask(kind, getattr(pipeline, name))
    networks = Networks(make_denoiser(kind, getattr(pipeline, name)), lora={**SETTINGS, "r": 1})
    with networks.evaluating("pretrained") as frozen:
        assert difference(ask(kind, frozen), given) < 1e-5
    assert difference(ask(kind, networks.trained), given) > 1e-2
    names = [part for part, parameter in networks.trained.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora_" in part for part in names)
    networks.export(tmp_path / "second")
    both, _ = make_pipeline(kind)  # one after the other they make our model again
    both.load_lora_weights(str(tmp_path / "given"), adapter_name="given")
    both.load_lora_weights(str(tmp_path / "second"), adapter_name="second")
    both.set_adapters(["given", "second"])
    assert difference(ask(kind, getattr(both, name)), ask(kind, networks.ema)) < 1e-5


def test_without_lora_all_weights_of_a_model_with_adapters_are_trained(fitted: Any, tmp_path: Path) -> None:
    fitted("sd").export(tmp_path)
    network = make_network("sd")
    load_lora(network, tmp_path)
    given = ask("sd", network)
    networks = Networks(make_denoiser("sd", network))
    assert set(networks.trained.state_dict()) == set(make_network("sd").state_dict())
    assert all(parameter.requires_grad for parameter in networks.trained.parameters())
    assert difference(ask("sd", networks.trained), given) < 1e-5


def test_a_source_with_adapters(folders: dict[str, Path], tmp_path: Path) -> None:
    source = PretrainedDenoiser(str(folders["sd"]))
    assert source.pipeline_class == "StableDiffusionPipeline"
    networks = Networks(source, lora=SETTINGS)
    networks.export(tmp_path / "export")
    read = PretrainedDenoiser(str(folders["sd"]), adapters=str(tmp_path / "export"))
    assert read.folder is None  # pictures beside the source are not this model's
    assert difference(ask("sd", read.network), ask("sd", networks.ema)) < 1e-5
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folders["sd"])
    pipeline.load_lora_weights(str(tmp_path / "export"))
    assert difference(ask("sd", pipeline.unet), ask("sd", networks.ema)) < 1e-5
    with pytest.raises(ValueError, match="adapters, not whole weights: .* this folder as `adapters`"):
        PretrainedDenoiser(str(tmp_path / "export"))


def test_adapters_for_another_network(fitted: Any, tmp_path: Path) -> None:
    fitted("sd").export(tmp_path)
    other = diffusers.UNet2DConditionModel(cross_attention_dim=8, **{**UNET, "block_out_channels": (8, 24)})
    with pytest.raises(ValueError, match="are for another network: .* does not fit a UNet2DConditionModel"):
        load_lora(other, tmp_path)
    with pytest.raises(ValueError, match="are for another network"):
        load_lora(make_network("flux"), tmp_path)
    with pytest.raises(ValueError, match="for a Linear: expected a file of adapters of one network of diffusers"):
        load_lora(torch.nn.Linear(1, 1), tmp_path)
    tensors = {f"text_encoder.{name}": value for name, value in load_file(tmp_path / LORA_NAME).items()}
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds adapters of text_encoder.. for a UNet"):
        load_lora(make_network("sd"), tmp_path / "other.safetensors")
    with pytest.raises(
        FileNotFoundError, match="no file of adapters is at '.*nowhere': expected a file .*; mend `adapters`"
    ):
        load_lora(make_network("sd"), tmp_path / "nowhere")
    (tmp_path / LORA_NAME).write_bytes((tmp_path / LORA_NAME).read_bytes()[:-9])
    with pytest.raises(ValueError, match="no complete safetensors file"):
        load_lora(make_network("sd"), tmp_path)


def kohya(name: str) -> str:
    module, matrix = re.fullmatch(r"unet\.(.+)\.lora_([AB])\.weight", name).groups()  # type: ignore[union-attr]
    return f"lora_unet_{module.replace('.', '_')}.lora_{'down' if matrix == 'A' else 'up'}.weight"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda t: {name: v for name, v in t.items() if "lora_A" in name}, "do not belong together, or one is missing"),
        (lambda t: {name: v[:1] if "lora_A" in name else v for name, v in t.items()}, "do not belong together"),
        (lambda t: {name: v * float("nan") for name, v in t.items()}, "but .*lora_A.weight is not finite"),
        (lambda t: {**t, "unet.conv_in.alpha": torch.ones(1)}, "but conv_in.alpha belongs to no adapter"),
        (lambda t: {"unet.foo.bar": torch.ones(1)}, "but foo.bar belongs to no adapter"),
    ],
)
def test_broken_adapters(fitted: Any, tmp_path: Path, changed: Any, told: str) -> None:
    fitted("sd").export(tmp_path)
    tensors = {name: value.contiguous() for name, value in changed(load_file(tmp_path / LORA_NAME)).items()}
    save_file(tensors, tmp_path / LORA_NAME)
    network = make_network("sd")
    with pytest.raises(ValueError, match=f"are broken: expected pairs of finite matrices, .*{told}"):
        load_lora(network, tmp_path)
    assert set(network.state_dict()) == set(make_network("sd").state_dict())


def test_adapters_in_the_layout_of_kohya(fitted: Any, tmp_path: Path) -> None:
    """They are refused, and what the message says converts them, their alpha included."""
    from peft import get_peft_model_state_dict

    fitted("sd").export(tmp_path)
    tensors = {kohya(name): value for name, value in load_file(tmp_path / LORA_NAME).items()}
    tensors |= {f"{name.partition('.')[0]}.alpha": torch.tensor(5.0) for name in tensors}
    save_file(tensors, tmp_path / "kohya.safetensors")
    with pytest.raises(ValueError, match=r"in another layout \(lora_unet_.*`pipe.load_lora_weights.*`pipe.save_lora_w"):
        load_lora(make_network("sd"), tmp_path / "kohya.safetensors")
    pipeline, _ = make_pipeline("sd")
    pipeline.load_lora_weights(str(tmp_path / "kohya.safetensors"))
    ((name, config),) = pipeline.unet.peft_config.items()
    pipeline.save_lora_weights(
        str(tmp_path / "converted"),
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet, adapter_name=name),
        unet_lora_adapter_metadata=config.to_dict(),
    )
    network = make_network("sd")
    load_lora(network, tmp_path / "converted")
    assert difference(ask("sd", network), ask("sd", pipeline.unet)) < 1e-5


def test_a_file_of_adapters_is_no_model(fitted: Any, tmp_path: Path) -> None:
    fitted("sd").export(tmp_path)
    with pytest.raises(ValueError, match="holds LoRA adapters, not whole weights: .* this file as `adapters`"):
        PretrainedDenoiser(str(tmp_path / LORA_NAME))


def test_pipelines_that_store_no_adapters(fitted: Any, tmp_path: Path) -> None:
    assert [takes_lora(name) for name in ("DDPMPipeline", "os", None)] == [False] * 3
    with pytest.raises(ValueError, match="DDPMPipeline stores no LoRA adapters"):
        save_lora(fitted("sd").ema, tmp_path, "DDPMPipeline")
    networks = fitted("sd")
    networks.denoiser.pipeline_class = None
    networks.export(tmp_path / "export")  # then the whole network is written
    read = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "export")
    assert difference(ask("sd", read), ask("sd", networks.ema)) < 1e-5
