"""Whole pipelines of diffusers against ours: the same noise, the family's scheduler of first order, a few steps."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.sampler import Sampler, sample

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

PROMPTS = ["a white duck", "black cat"]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def ours(denoiser: PretrainedDenoiser, z: Tensor, sampler: Sampler, condition: Any = None) -> Tensor:
    """Pictures in [0, 1], as a pipeline gives them."""
    with torch.no_grad():
        latents = sample(denoiser.predictor(condition), denoiser.noise_schedule, z, sampler)
        return denoiser.codec.decode(latents).clamp(0, 1)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def reference(folder: Path, scheduler: str | None = None, **settings: Any) -> Any:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler:
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **settings)
    return pipeline


@pytest.mark.parametrize(("scale", "negative"), [(5.0, ""), (2.0, "blur")])
@pytest.mark.parametrize(
    ("kind", "scheduler", "more"),
    [
        ("sd", "DDIMScheduler", {}),
        ("sdxl", None, {}),
        ("sd3", None, {}),
        ("pixart", "DDIMScheduler", {"use_resolution_binning": False, "clean_caption": False}),
        ("pixart_sigma", "DDIMScheduler", {"use_resolution_binning": False, "clean_caption": False}),
        ("sana", None, {"use_resolution_binning": False}),
    ],
)
def test_text_to_image(
    folders: dict[str, Path], kind: str, scheduler: str | None, more: Any, scale: float, negative: str
) -> None:
    denoiser = PretrainedDenoiser(str(folders[kind]), scale, negative)
    z = draw(2, 1, *denoiser.sample_shape)
    found = ours(denoiser, z, Sampler(steps=5), denoiser.encode(PROMPTS))
    pipeline = reference(folders[kind], scheduler, clip_sample=False)
    if negative:
        more = {**more, "negative_prompt": negative if kind.startswith(("pixart", "sana")) else [negative] * 2}
    size = dict(zip(("height", "width"), denoiser.data_shape[1:], strict=True))
    settings = {"num_inference_steps": 5, "guidance_scale": scale, "output_type": "pt", **size, **more}
    expected = pipeline(PROMPTS, latents=z[:, 0], **settings).images
    assert found.shape == (2, *denoiser.data_shape)
    assert relative(found, expected) < 1e-4


def test_pixart_of_1024_pixels_is_told_its_size(folders: dict[str, Path]) -> None:
    denoiser = PretrainedDenoiser(str(folders["pixart_large"]), 5.0)
    z = draw(1, 1, *denoiser.sample_shape)
    condition = denoiser.encode(PROMPTS[:1])
    assert condition["added_cond_kwargs.resolution"].tolist() == [[256, 256]]
    assert condition["added_cond_kwargs.aspect_ratio"].tolist() == [[1]]
    found = ours(denoiser, z, Sampler(steps=1), condition)
    pipeline = reference(folders["pixart_large"], "DDIMScheduler", clip_sample=False)
    plain = {"use_resolution_binning": False, "clean_caption": False, "output_type": "pt", "guidance_scale": 5.0}
    expected = pipeline(PROMPTS[:1], latents=z[:, 0], num_inference_steps=1, height=256, width=256, **plain).images
    assert relative(found, expected) < 1e-4


@pytest.mark.parametrize("kind", ["flux", "schnell"])
def test_flux(folders: dict[str, Path], kind: str) -> None:
    scale = 3.5 if kind == "flux" else 1.0
    denoiser = PretrainedDenoiser(str(folders[kind]), scale, sample_shape=(4, 8, 12))
    z = draw(2, 1, *denoiser.sample_shape)
    found = ours(denoiser, z, Sampler(steps=4), denoiser.encode(PROMPTS))
    pipeline = reference(folders[kind])
    latents = pipeline._pack_latents(z[:, 0], 2, 4, 8, 12)
    size = {"height": 16, "width": 24, "guidance_scale": scale}
    expected = pipeline(PROMPTS, latents=latents, num_inference_steps=4, output_type="pt", **size).images
    assert found.shape == (2, 3, 16, 24)
    assert relative(found, expected) < 1e-4


@pytest.mark.parametrize(("kind", "eta", "scale"), [("turbo", 1.0, 1.0), ("turbo", 1.0, 5.0), ("lcm", 0.0, 8.0)])
def test_models_of_few_steps(folders: dict[str, Path], kind: str, eta: float, scale: float) -> None:
    doubtful: Any = nullcontext()
    if (kind, scale) == ("turbo", 5.0):
        doubtful = pytest.warns(UserWarning, match="scheduler of a turbo model")
    with doubtful:
        denoiser, sampler = PretrainedDenoiser(str(folders[kind]), scale), Sampler(steps=3, eta=eta)
    z = draw(2, 1 + sampler.injecting_steps(denoiser.noise_schedule), *denoiser.sample_shape)
    assert z.shape[1] == 3
    found = ours(denoiser, z, sampler, denoiser.encode(PROMPTS))
    pipeline = reference(folders[kind])
    pipeline.scheduler.__class__ = fed(type(pipeline.scheduler), [*z[:, 1:].unbind(1), torch.zeros_like(z[:, 0])])
    settings = {"num_inference_steps": 3, "guidance_scale": scale, "output_type": "pt"}
    expected = pipeline(PROMPTS, latents=z[:, 0], **settings).images
    assert relative(found, expected) < 1e-4


@pytest.mark.parametrize("steps", [1, 4])
def test_consistency_models(folders: dict[str, Path], steps: int) -> None:
    denoiser, sampler = PretrainedDenoiser(str(folders["consistency"])), Sampler(steps=steps)
    z = draw(2, 1 + sampler.injecting_steps(denoiser.noise_schedule), *denoiser.sample_shape)
    pipeline = reference(folders["consistency"])
    pipeline.scheduler.__class__ = fed(type(pipeline.scheduler), [*z[:, 1:].unbind(1), torch.zeros_like(z[:, 0])])
    expected = pipeline(2, latents=z[:, 0], num_inference_steps=steps, output_type="pt").images
    assert relative(ours(denoiser, z, sampler), expected) < 1e-4


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_dit(folders: dict[str, Path], scale: float) -> None:
    denoiser = PretrainedDenoiser(str(folders["dit"]), scale)
    assert denoiser.null(2, torch.device("cpu"))["class_labels"].tolist() == [1000, 1000]
    z, labels = draw(2, 1, *denoiser.sample_shape), {"class_labels": torch.tensor([3, 999])}
    denoiser.check_data(denoiser.data_shape, labels)
    pipeline, generator = reference(folders["dit"]), torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 5, "guidance_scale": scale, "generator": generator, "output_type": "np"}
    expected = torch.as_tensor(pipeline([3, 999], **settings).images).permute(0, 3, 1, 2)
    assert relative(ours(denoiser, z, Sampler(steps=5), labels), expected) < 1e-4


@pytest.mark.parametrize("kind", ["ldm", "ddim"])
def test_models_that_are_told_nothing(folders: dict[str, Path], kind: str) -> None:
    denoiser = PretrainedDenoiser(str(folders[kind]))
    assert not denoiser.has_prompts
    z, generator = draw(2, 1, *denoiser.sample_shape), torch.Generator().manual_seed(0)
    pipeline = reference(folders[kind])
    images = pipeline(2, num_inference_steps=5, generator=generator, output_type="np").images
    expected = torch.as_tensor(images).permute(0, 3, 1, 2)
    assert relative(ours(denoiser, z, Sampler(steps=5)), expected) < 1e-4


def test_audio_of_a_one_dimensional_unet(tmp_path: Path) -> None:
    """A bare network, whose pipeline has a multistep scheduler alone: DDIM's steps by hand."""
    torch.manual_seed(0)
    down, up = ("DownBlock1DNoSkip", "DownBlock1D"), ("UpBlock1D", "UpBlock1DNoSkip")
    blocks = {"block_out_channels": (8, 32), "down_block_types": down, "up_block_types": up}
    network = diffusers.UNet1DModel(sample_size=32, in_channels=2, extra_in_channels=16, **blocks)
    network.save_pretrained(tmp_path)
    diffusers.DDIMScheduler(clip_sample=False).save_pretrained(tmp_path / "scheduler")
    denoiser = PretrainedDenoiser(str(tmp_path), codec=Normalizer())
    assert denoiser.sample_shape == denoiser.data_shape == (2, 32)
    z, scheduler = draw(2, 1, 2, 32), diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(5)
    expected = z[:, 0]
    with torch.no_grad():
        for t in scheduler.timesteps:
            expected = scheduler.step(network(expected, t).sample, t, expected).prev_sample
        found = sample(denoiser.predictor(), denoiser.noise_schedule, z, Sampler(steps=5))
    assert relative(found, expected) < 1e-4


def fed(cls: Any, noises: list[Tensor]) -> Any:
    """The scheduler `cls`, which is given the noises that it would draw."""

    class Fed(cls):  # type: ignore[misc]
        def step(self, *args: Any, **settings: Any) -> Any:
            import sys

            module, noise = sys.modules[cls.__module__], noises[0]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "randn_tensor", lambda *_, **__: noise)
                noises.pop(0)
                return super().step(*args, **settings)

    Fed.__name__ = cls.__name__
    return Fed
