"""Tiny Stable Diffusion and SDXL pipelines with random weights: our samples are those of diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.denoisers import text_to_image
from constrained_diffusion.denoisers.text_to_image import TextToImage
from constrained_diffusion.diffusion.sampler import Sampler, ddim

transformers = pytest.importorskip("transformers", reason="the extra `rewards` is not installed")

KINDS = ["sd", "sdxl"]
PROMPTS = ["a white duck", "black cat"]


@pytest.fixture(scope="session")
def load(folders: dict[str, Path]) -> Callable[..., TextToImage]:
    """`load(kind, **settings)`: the model at our folder of the kind."""
    return lambda kind, **settings: TextToImage(str(folders[kind]), **settings)


@pytest.fixture(scope="session", params=KINDS)
def model(request: pytest.FixtureRequest, load: Callable[..., TextToImage]) -> TextToImage:
    """Both kinds, in float32; not to be changed."""
    return load(request.param)


class FedDDIM(diffusers.DDIMScheduler):
    """DDIM whose injected noises come from us; a pipeline itself would draw them."""

    noises: Any = None

    def step(self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.0, **kwargs: Any) -> Any:
        noise = next(self.noises) if eta else None
        return super().step(model_output, timestep, sample, eta=eta, variance_noise=noise, return_dict=False)


def reference(folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline of diffusers in `folder`, with a DDIM that keeps alpha-bar in double precision."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder).to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FedDDIM.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.scheduler.alphas_cumprod = pipeline.scheduler.alphas_cumprod.double()
    pipeline.scheduler.final_alpha_cumprod = pipeline.scheduler.final_alpha_cumprod.double()
    return pipeline


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


# ------------------------------------------------------------------------------------------------- against diffusers


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "settings"),
    [
        (torch.float32, 1e-4, {}),
        (torch.float64, 1e-10, {}),
        (torch.float64, 1e-10, {"guidance_scale": 1.0}),
        (torch.float64, 1e-10, {"guidance_scale": 7.5, "negative_prompt": "blur"}),
    ],
    ids=["single", "double", "unguided", "negative"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_the_pipeline(
    folders: Any, load: Any, kind: str, dtype: torch.dtype, tolerance: float, settings: Any, eta: float
) -> None:
    model = load(kind, **settings).to(dtype)
    sampler = Sampler(steps=5, eta=eta, **model.sampler_settings())
    z = draw(2, 1 + sampler.injecting_steps(1000), *model.sample_shape, dtype=dtype)
    with torch.no_grad():
        latents = ddim(model.predictor(model.encode(PROMPTS)), model.noise_schedule, z, sampler)
    pipeline = reference(folders[kind], dtype)
    # Onto alpha-bar = 1 nothing is injected: z has no slice for it, and diffusers multiplies what it is given by 0.
    pipeline.scheduler.noises = iter([*z[:, 1:].unbind(1), torch.zeros_like(z[:, 0])])
    expected = pipeline(
        PROMPTS,
        latents=z[:, 0],
        num_inference_steps=5,
        guidance_scale=settings.get("guidance_scale", 5.0),
        negative_prompt=[settings["negative_prompt"]] * 2 if "negative_prompt" in settings else None,
        eta=eta,
        output_type="latent",
    ).images
    assert latents.dtype == dtype
    assert (latents - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_the_pipeline(folders: Any, load: Any, kind: str) -> None:
    model, pipeline, latents = load(kind), reference(folders[kind], torch.float32), draw(2, 4, 8, 8)
    expected = pipeline.vae.decode(latents / 0.25).sample
    torch.testing.assert_close(model.decode(latents) * 2 - 1, expected)
    beyond = model.decode(1e3 * latents)
    assert beyond.shape == (2, 3, 16, 16)
    assert not ((beyond >= 0) & (beyond <= 1)).all()  # nothing is clamped


@pytest.mark.parametrize("negative", ["", "blur"])
def test_what_sdxl_is_told_is_what_its_pipeline_tells_it(folders: Any, load: Any, negative: str) -> None:
    conditioning = load("sdxl", negative_prompt=negative).encode(PROMPTS)
    pipeline = reference(folders["sdxl"], torch.float32)
    told: dict[str, Tensor] = {}

    def listen(module: nn.Module, args: Any, kwargs: Any) -> None:
        told.update(text=kwargs["encoder_hidden_states"], **kwargs["added_cond_kwargs"])

    pipeline.unet.register_forward_pre_hook(listen, with_kwargs=True)
    pipeline(PROMPTS, negative_prompt=[negative] * 2 if negative else None, num_inference_steps=1, output_type="latent")
    pooled = torch.cat([conditioning.negative_pooled, conditioning.pooled])  # type: ignore[list-item]
    torch.testing.assert_close(torch.cat([conditioning.negative, conditioning.text]), told["text"])
    torch.testing.assert_close(pooled, told["text_embeds"])
    assert torch.equal(conditioning.time_ids.repeat(2, 1), told["time_ids"])  # type: ignore[union-attr]
    assert told["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 4
    assert bool((conditioning.negative == 0).all()) == (not negative)  # SDXL base forces zeros


def test_the_samplers_settings_are_those_of_the_schedulers_config(load: Any) -> None:
    for kind, spacing, to_one in (("sd", "leading", False), ("sdxl", "trailing", True)):
        settings = {"spacing": spacing, "steps_offset": 1, "set_alpha_to_one": to_one, "clip_sample": False}
        assert load(kind).sampler_settings() == settings
        assert load(kind).sample_shape == (4, 8, 8)


# --------------------------------------------------------------------------------------------------------- conditioning


def test_each_prompt_is_encoded_once(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = load("sd"), []
    told, encode = "encode_prompt", model._pipeline.encode_prompt
    monkeypatch.setattr(model._pipeline, told, lambda **kw: asked.append(kw["prompt"]) or encode(**kw))
    first = model.encode(["duck", "cat", "duck"])
    again = model.encode(["cat", "dog"])
    assert asked == ["duck", "cat", "dog"]
    assert torch.equal(first.text[0], first.text[2])
    assert torch.equal(first.text[1], again.text[0])
    assert not torch.equal(first.text[0], first.text[1])
    monkeypatch.setattr(text_to_image, "CACHED", 2)  # a long list of prompts does not fill the memory
    three = model.encode(["owl", "fox", "duck"])
    assert torch.equal(three.text[2], first.text[0])
    assert len(model._encoded) == 2


def test_rows_are_taken_and_repeated(model: TextToImage) -> None:
    both = model.encode(PROMPTS)
    rows = both.rows([1, 1, 0])
    parts = [(part, whole) for part, whole in zip(rows, both, strict=True) if whole is not None]
    assert all(torch.equal(part, whole[[1, 1, 0]]) for part, whole in parts)
    assert (rows.pooled is None) == (model.text_encoder_2 is None)
    assert torch.equal(both.rows(slice(1, 2)).text, both.rows(torch.tensor([1])).text)


def test_what_was_encoded_in_inference_mode_may_enter_a_gradient(load: Any) -> None:
    model = load("sdxl")
    with torch.inference_mode():
        conditioning = model.encode(PROMPTS)
    noisy = draw(2, 4, 8, 8).requires_grad_()
    model.predictor(conditioning)(noisy, torch.tensor([500, 500])).clean.sum().backward()
    assert not conditioning.text.requires_grad
    assert (noisy.grad != 0).any(dim=(1, 2, 3)).all()


def test_both_branches_are_one_batch_and_none_is_wasted(load: Any) -> None:
    sizes = []
    for scale in (5.0, 1.0):
        model = load("sdxl", guidance_scale=scale)
        model.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        model.predictor(model.encode(PROMPTS))(draw(2, 4, 8, 8), torch.tensor([10, 900]))
    assert sizes == [4, 2]


# --------------------------------------------------------------------------------------------------- frozen, gradients


def test_the_networks_stay_frozen(load: Any) -> None:
    model = load("sdxl")
    assert not any(p.requires_grad for p in model.parameters())
    nn.ModuleList([model]).train()  # as a LightningModule would
    assert not any(module.training for module in model.modules())
    parts = {name.partition(".")[0] for name, _ in model.named_parameters()}
    assert parts == {"unet", "vae", "text_encoder", "text_encoder_2"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_the_noise_through_sampler_and_decoder(load: Any, kind: str) -> None:
    model = load(kind).double()
    sampler = Sampler(steps=2, eta=1.0, **model.sampler_settings())
    predict = model.predictor(model.encode(PROMPTS[:1]))
    shape = (1, 1 + sampler.injecting_steps(1000), *model.sample_shape)

    def brightness(noise: Tensor) -> Tensor:
        return model.decode(ddim(predict, model.noise_schedule, noise, sampler)).square().mean()

    z, direction = draw(*shape, dtype=torch.float64).requires_grad_(), draw(*shape, dtype=torch.float64).cos()
    (gradient,) = torch.autograd.grad(brightness(z), z)
    with torch.no_grad():
        numeric = (brightness(z + 1e-5 * direction) - brightness(z - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-9)


def test_decoding_keeps_only_the_latents_for_the_gradient(load: Any) -> None:
    model, kept = load("sd"), []
    latents = draw(2, 4, 8, 8).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        model.decode(latents)
    assert sum(kept) <= 2 * latents.numel() + 2 * 3 * 16 * 16
    assert not model.decode(latents.detach()).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_answers_in_the_dtype_of_the_noise(load: Any, kind: str) -> None:
    model = load(kind)
    conditioning, noisy, t = model.encode(PROMPTS), draw(2, 4, 8, 8), torch.tensor([500, 20])
    exact, image = model.predictor(conditioning)(noisy, t), model.decode(noisy)
    abar = model.noise_schedule.alphas_cumprod.clone()
    half = model.to(torch.bfloat16)
    assert torch.equal(half.noise_schedule.alphas_cumprod, abar)
    for told in (conditioning, half.encode(["white duck", "cat"])):
        assert half.predictor(told)(noisy, t).clean.dtype == torch.float32
    torch.testing.assert_close(half.predictor(conditioning)(noisy, t).output, exact.output, rtol=0.1, atol=0.1)
    torch.testing.assert_close(half.decode(noisy), image, rtol=0.1, atol=0.1)


def test_a_decoder_that_overflows_in_half_precision_decodes_in_single(load: Any) -> None:
    model, noisy = load("sdxl"), draw(2, 4, 8, 8)
    image, predict = model.decode(noisy), model.predictor(model.encode(PROMPTS))
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(model.decode(noisy), image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(model.decode(noisy), image)
        assert predict(noisy, torch.tensor([500, 20])).clean.dtype == torch.float32
    torch.testing.assert_close(model.half().decode(noisy), image, rtol=0, atol=2e-3)  # its weights are rounded
    assert model.vae.dtype == torch.float32
    assert model.unet.dtype == torch.float16


# ------------------------------------------------------------------------------------------------------------- refusals


def test_wrong_settings_are_refused(model: TextToImage, load: Any) -> None:
    with pytest.raises(ValueError, match="expects guidance_scale >= 0, got -1"):
        load("sd", guidance_scale=-1.0)
    for wrong in ("a duck", []):
        with pytest.raises(ValueError, match="a list of at least one prompt, got .*; write"):
            model.encode(wrong)
    predict = model.predictor(model.encode(PROMPTS))
    with pytest.raises(ValueError, match=r"conditioning has 2 rows and the noise 3: .* conditioning.rows"):
        predict(draw(3, 4, 8, 8), torch.tensor([1, 1, 1]))
