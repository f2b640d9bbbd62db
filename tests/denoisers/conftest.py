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


# ------------------------------------------------------------------------- tiny parts of text-to-image pipelines

LETTERS = string.ascii_lowercase
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def clip_tokenizer(transformers: Any, folder: Path) -> Any:
    """A CLIP tokenizer that knows the letters alone."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def t5_tokenizer(transformers: Any) -> Any:
    words = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return transformers.T5Tokenizer(vocab=[(word, -float(i)) for i, word in enumerate(words)], extra_ids=0)


def gemma_tokenizer(transformers: Any) -> Any:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *LETTERS]
    return transformers.GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])


def clip(transformers: Any, name: str) -> Any:
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return getattr(transformers, name)(transformers.CLIPTextConfig(projection_dim=6, **size, **tokens))


def t5(transformers: Any) -> Any:
    size = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    return transformers.T5EncoderModel(transformers.T5Config(**size))


def gemma(transformers: Any) -> Any:
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "head_dim": 4}
    return transformers.Gemma2Model(
        transformers.Gemma2Config(num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, **size)
    )


def conditional_unet(**settings: Any) -> Any:
    size = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    blocks = {"down_block_types": down, "up_block_types": up, "attention_head_dim": 2}
    return diffusers.UNet2DConditionModel(**size, **blocks, **settings)


def vae(**settings: Any) -> Any:
    size = {"block_out_channels": (4, 8), "latent_channels": 4, "norm_num_groups": 2, "scaling_factor": 0.25}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(**size, **blocks, **settings)


def vq_model() -> Any:
    size = {"block_out_channels": (4, 8), "latent_channels": 3, "norm_num_groups": 2, "num_vq_embeddings": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.VQModel(**size, **blocks)


def deep_autoencoder() -> Any:
    kinds, multiscales = ("ResBlock", "EfficientViTBlock"), ((), (5,))
    both: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        both |= {f"{side}_block_types": kinds, f"{side}_block_out_channels": (8, 8)}
        both |= {f"{side}_qkv_multiscales": multiscales, f"{side}_layers_per_block": (1, 1)}
    sampling = {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
    return diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=2, scaling_factor=0.41, **both, **sampling)


# --------------------------------------------------------------------------------------------------- whole pipelines


def stable_diffusion(transformers: Any, top: Path, scheduler: Any = None, **unet: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        tokenizer=clip_tokenizer(transformers, top / "tokens"),
        text_encoder=clip(transformers, "CLIPTextModel"),
        unet=conditional_unet(cross_attention_dim=8, **unet),
        scheduler=scheduler or diffusers.PNDMScheduler(skip_prk_steps=True, **BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def turbo(transformers: Any, top: Path) -> Any:
    betas = {**BETAS, "timestep_spacing": "trailing"}
    return stable_diffusion(transformers, top, diffusers.EulerAncestralDiscreteScheduler(**betas))


def lcm(transformers: Any, top: Path) -> Any:
    return stable_diffusion(transformers, top, diffusers.LCMScheduler(**BETAS), time_cond_proj_dim=8)


def sdxl(transformers: Any, top: Path) -> Any:
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    other = {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    tokens = clip_tokenizer(transformers, top / "tokens")
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        tokenizer=tokens,
        tokenizer_2=tokens,
        text_encoder=clip(transformers, "CLIPTextModel"),
        text_encoder_2=clip(transformers, "CLIPTextModelWithProjection"),
        unet=conditional_unet(cross_attention_dim=16, projection_class_embeddings_input_dim=6 + 6 * 4, **added),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, **other),
    )


def sd3(transformers: Any, top: Path) -> Any:
    size = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8}
    width = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    tokens = clip_tokenizer(transformers, top / "tokens")
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(joint_attention_dim=16, pooled_projection_dim=12, **size, **width),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.1),
        text_encoder=clip(transformers, "CLIPTextModelWithProjection"),
        text_encoder_2=clip(transformers, "CLIPTextModelWithProjection"),
        text_encoder_3=t5(transformers),
        tokenizer=tokens,
        tokenizer_2=tokens,
        tokenizer_3=t5_tokenizer(transformers),
    )


def flux(transformers: Any, top: Path, guidance_embeds: bool = True) -> Any:
    size = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    size |= {"num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 8}
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if guidance_embeds else {"shift": 1.0}
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(axes_dims_rope=(4, 4, 8), guidance_embeds=guidance_embeds, **size),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
        vae=vae(shift_factor=0.1),
        text_encoder=clip(transformers, "CLIPTextModel"),
        tokenizer=clip_tokenizer(transformers, top / "tokens"),
        text_encoder_2=t5(transformers),
        tokenizer_2=t5_tokenizer(transformers),
    )


def schnell(transformers: Any, top: Path) -> Any:
    return flux(transformers, top, guidance_embeds=False)


def pixart(transformers: Any, top: Path, kind: str = "PixArtAlphaPipeline", **settings: Any) -> Any:
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "cross_attention_dim": 24}
    return getattr(diffusers, kind)(
        transformer=diffusers.PixArtTransformer2DModel(**{"sample_size": 8, **size, **settings}, caption_channels=16),
        # Trailing, whose steps DDIM's own t - T // n leads to.
        scheduler=diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing"),
        vae=vae(),
        text_encoder=t5(transformers),
        tokenizer=t5_tokenizer(transformers),
    )


def pixart_sigma(transformers: Any, top: Path) -> Any:
    return pixart(transformers, top, "PixArtSigmaPipeline")


def pixart_large(transformers: Any, top: Path) -> Any:
    """Of 1024 pixels, told of its size and its aspect ratio."""
    return pixart(transformers, top, sample_size=128, patch_size=8)


def sana(transformers: Any, top: Path) -> Any:
    size = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1}
    cross = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 4, "cross_attention_dim": 8}
    return diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(sample_size=16, caption_channels=8, **size, **cross),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=deep_autoencoder(),
        text_encoder=gemma(transformers),
        tokenizer=gemma_tokenizer(transformers),
    )


def dit(transformers: Any, top: Path) -> Any:
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 8}
    return diffusers.DiTPipeline(
        transformer=diffusers.DiTTransformer2DModel(in_channels=4, out_channels=8, **size),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, **BETAS),
        vae=vae(),
        id2label={0: "duck", 1: "cat"},
    )


def ldm(transformers: Any, top: Path) -> Any:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **{**BETAS, "steps_offset": 0})
    return diffusers.LDMPipeline(vqvae=vq_model(), unet=make_unet(in_channels=3, out_channels=3), scheduler=scheduler)


def ddim(transformers: Any, top: Path) -> Any:
    return diffusers.DDIMPipeline(make_unet(in_channels=3, out_channels=3), diffusers.DDIMScheduler())


def consistency(transformers: Any, top: Path) -> Any:
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
    return diffusers.ConsistencyModelPipeline(make_unet(in_channels=3, out_channels=3), scheduler)


PIPELINES = {
    "sd": stable_diffusion, "turbo": turbo, "lcm": lcm, "sdxl": sdxl, "sd3": sd3, "flux": flux, "schnell": schnell,
    "pixart": pixart, "pixart_sigma": pixart_sigma, "pixart_large": pixart_large, "sana": sana, "dit": dit, "ldm": ldm,
    "ddim": ddim, "consistency": consistency,
}  # fmt: skip


class Folders(dict[str, Path]):
    """Pipelines by their kind as diffusers saves them, with the schedulers of real ones; made on demand."""

    def __init__(self, top: Path) -> None:
        super().__init__()
        self.top = top

    def __missing__(self, kind: str) -> Path:
        transformers = pytest.importorskip("transformers", reason="the extra `text-to-image` is not installed")
        torch.manual_seed(0)
        folder = self.top / kind
        PIPELINES[kind](transformers, folder).save_pretrained(folder / "pipeline")
        self[kind] = folder / "pipeline"
        return self[kind]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines with random weights, by the names in `PIPELINES`; not to be changed."""
    return Folders(tmp_path_factory.mktemp("pipelines"))
