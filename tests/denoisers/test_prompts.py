"""Prompts as conditions: each encoded once, on its own, outside of the module tree."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.denoisers import prompts
from constrained_diffusion.denoisers.families import FAMILIES
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.diffusion.sampler import Sampler, sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers

PROMPTS = ["a white duck", "black cat"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("negative", ["", "blur"])
def test_what_sdxl_is_told_is_what_its_pipeline_tells_it(folders: dict[str, Path], negative: str) -> None:
    denoiser = PretrainedDenoiser(str(folders["sdxl"]), 5.0, negative)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folders["sdxl"])
    told: dict[str, Tensor] = {}

    def listen(module: nn.Module, args: Any, kwargs: Any) -> None:
        told.update(encoder_hidden_states=kwargs["encoder_hidden_states"])
        told.update({f"added_cond_kwargs.{name}": rows for name, rows in kwargs["added_cond_kwargs"].items()})

    pipeline.unet.register_forward_pre_hook(listen, with_kwargs=True)
    pipeline(PROMPTS, negative_prompt=[negative] * 2 if negative else None, num_inference_steps=1, output_type="latent")
    null, condition = denoiser.null(2, CPU), denoiser.encode(PROMPTS)
    assert null.keys() == condition.keys() == told.keys()
    for name in told:
        torch.testing.assert_close(torch.cat([null[name], condition[name]]), told[name])
    assert condition["added_cond_kwargs.time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    assert bool((null["encoder_hidden_states"] == 0).all()) == (not negative)  # SDXL base forces zeros


@pytest.mark.parametrize("name", ["sdxl", "pixart"])
def test_height_comes_before_width(name: str) -> None:
    family = next(one for one in FAMILIES if one.name == name)
    network: Any = SimpleNamespace(config={}, use_additional_conditions=name == "pixart")
    found = prompts.constants(network, family, None, (3, 512, 1024), 1.0)
    expected = {
        "sdxl": {"added_cond_kwargs.time_ids": [[512, 1024, 0, 0, 512, 1024]]},
        "pixart": {"added_cond_kwargs.resolution": [[512, 1024]], "added_cond_kwargs.aspect_ratio": [[0.5]]},
    }
    assert {key: rows.tolist() for key, rows in found.items()} == expected[name]


def test_sd3_may_come_without_t5(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, missing = tmp_path / "pipeline", ("text_encoder_3", "tokenizer_3")
    shutil.copytree(folders["sd3"], folder)
    for name in missing:
        shutil.rmtree(folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {name: [None, None] for name in missing}))
    told = PretrainedDenoiser(str(folder)).encode(PROMPTS[:1])
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, **dict.fromkeys(missing))
    expected = pipeline.encode_prompt(PROMPTS[0], None, None, do_classifier_free_guidance=False)
    torch.testing.assert_close(told["encoder_hidden_states"], expected[0])
    torch.testing.assert_close(told["pooled_projections"], expected[2])


def test_another_negative_prompt_makes_other_samples(folders: dict[str, Path]) -> None:
    found = {PretrainedDenoiser(str(folders["sd"]), 5.0, said).guidance_settings for said in ("", "blur")}
    assert len(found) == 2


@pytest.mark.parametrize(("kind", "scale"), [("sd", 1.0), ("flux", 3.5), ("lcm", 8.0)])
def test_a_negative_prompt_without_effect_is_refused(folders: dict[str, Path], kind: str, scale: float) -> None:
    shape = (4, 8, 8) if kind == "flux" else None
    why = "guidance_scale is 1:" if scale == 1 else "this model's guidance was distilled:"
    with pytest.raises(ValueError, match=f"negative_prompt is 'blur', but it has no effect, because {why}"):
        PretrainedDenoiser(str(folders[kind]), scale, "blur", sample_shape=shape)
    PretrainedDenoiser(str(folders[kind]), scale, sample_shape=shape)


def test_each_prompt_is_encoded_once(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, asked = PretrainedDenoiser(str(folders["sd"])), []
    pipeline = denoiser.text.pipeline  # type: ignore[union-attr]
    encode = pipeline.encode_prompt

    def counted(prompt: str, **settings: Any) -> Any:
        asked.append(prompt)
        return encode(prompt, **settings)

    counted.__signature__ = inspect.signature(encode)  # type: ignore[attr-defined]
    monkeypatch.setattr(pipeline, "encode_prompt", counted)
    first, again = denoiser.encode(["duck", "cat", "duck"]), denoiser.encode(["cat", "dog"])
    assert asked == ["duck", "cat", "dog"]
    rows, others = first["encoder_hidden_states"], again["encoder_hidden_states"]
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1], others[0])
    assert not torch.equal(rows[0], rows[1])
    monkeypatch.setattr(prompts, "CACHED", 2)  # a long list of prompts does not fill the memory
    three = denoiser.encode(["owl", "fox", "duck"])["encoder_hidden_states"]
    assert torch.equal(three[2], rows[0])
    assert len(denoiser.text._encoded) == 2  # type: ignore[union-attr]
    denoiser.null(2, CPU)
    denoiser.null(3, CPU)
    assert asked.count("") == 1


def test_a_wrong_list_of_prompts_is_refused(folders: Any) -> None:
    denoiser = PretrainedDenoiser(str(folders["sd"]))
    for wrong in ("a duck", [], [None], ["a duck", 3]):
        with pytest.raises(ValueError, match="a list of at least one prompt, each a string, got .*; write"):
            denoiser.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="PretrainedDenoiser takes no prompts: expected a text-to-image pipeline"):
        PretrainedDenoiser(str(folders["ldm"])).encode(PROMPTS)
    with pytest.raises(ValueError, match="'encoder_hidden_states' has 2 rows and the batch 3"):
        denoiser.predictor(denoiser.encode(PROMPTS))(torch.zeros(3, 4, 8, 8), torch.tensor([1, 1, 1]))


def test_the_text_encoders_are_no_part_of_the_modules(folders: Any) -> None:
    denoiser = PretrainedDenoiser(str(folders["sdxl"]))
    assert {name.partition(".")[0] for name, _ in denoiser.named_parameters()} == {"network", "codec"}
    parts = denoiser.text.pipeline.components.values()  # type: ignore[union-attr]
    encoders = [part for part in parts if isinstance(part, nn.Module)]
    assert len(encoders) == 2
    assert not any(p.requires_grad for encoder in encoders for p in encoder.parameters())
    assert not any(p.requires_grad for p in denoiser.codec.parameters())


def test_the_text_encoders_come_to_the_networks_device_and_go_back(folders: Any) -> None:
    denoiser, places = PretrainedDenoiser(str(folders["sd"])), []
    encoder = denoiser.text.pipeline.text_encoder  # type: ignore[union-attr]
    move = encoder.to
    encoder.to = lambda device: places.append(str(device)) or move("cpu")
    assert denoiser.encode(PROMPTS)["encoder_hidden_states"].device == CPU
    assert places == ["cpu", "cpu"]
    denoiser.network.to("meta")
    condition = denoiser.encode(PROMPTS)  # which are known already
    assert condition["encoder_hidden_states"].is_meta
    assert places == ["cpu", "cpu"]


def test_what_was_encoded_in_inference_mode_may_enter_a_gradient(folders: Any) -> None:
    denoiser = PretrainedDenoiser(str(folders["sdxl"]), 5.0)
    with torch.inference_mode():
        condition = denoiser.encode(PROMPTS)
    noisy = torch.randn(2, 4, 8, 8).requires_grad_()
    denoiser.predictor(condition)(noisy, torch.tensor([500, 500])).clean.sum().backward()
    assert not condition["encoder_hidden_states"].requires_grad
    assert (noisy.grad != 0).any(dim=(1, 2, 3)).all()  # type: ignore[union-attr]


def test_both_branches_are_one_batch_and_none_is_wasted(folders: Any) -> None:
    sizes: list[int] = []
    for scale in (5.0, 1.0):
        denoiser = PretrainedDenoiser(str(folders["sdxl"]), scale)
        denoiser.network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        denoiser.predictor(denoiser.encode(PROMPTS))(torch.randn(2, 4, 8, 8), torch.tensor([10, 900]))
    assert sizes == [4, 2]


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_the_gradient_reaches_the_noise_through_sampler_and_decoder(folders: Any, kind: str) -> None:
    denoiser = PretrainedDenoiser(str(folders[kind]), 5.0).double().requires_grad_(False)
    sampler, schedule = Sampler(steps=2, eta=1.0), denoiser.noise_schedule
    predict = denoiser.predictor(denoiser.encode(PROMPTS[:1]))
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1 + sampler.injecting_steps(schedule), *denoiser.sample_shape)
    z, direction = (torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def brightness(noise: Tensor) -> Tensor:
        return denoiser.codec.decode(sample(predict, schedule, noise, sampler)).square().mean()

    (gradient,) = torch.autograd.grad(brightness(z.requires_grad_()), z)
    with torch.no_grad():
        numeric = (brightness(z + 1e-5 * direction) - brightness(z - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_half_precision_answers_in_the_dtype_of_the_noise(folders: Any, kind: str) -> None:
    denoiser = PretrainedDenoiser(str(folders[kind]), 5.0)
    condition, noisy, t = denoiser.encode(PROMPTS), torch.randn(2, 4, 8, 8), torch.tensor([500, 20])
    exact = denoiser.predictor(condition)(noisy, t)
    abar = denoiser.noise_schedule.alphas_cumprod.clone()
    half = denoiser.to(torch.bfloat16)
    assert torch.equal(half.noise_schedule.alphas_cumprod, abar)
    assert half.predictor(half.encode(PROMPTS))(noisy, t).clean.dtype == torch.float32
    torch.testing.assert_close(half.predictor(condition)(noisy, t).output, exact.output, rtol=0.1, atol=0.1)
