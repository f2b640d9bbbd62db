"""Adapters that a model is given: merged at load, kept by an export, and noted by those that come on top."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from constrained_diffusion.denoisers.export import export
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.lora_files import LORA_NAME, load_lora
from constrained_diffusion.denoisers.merging import adapter_layers
from constrained_diffusion.diffusion.sampler import Sampler, sample
from constrained_diffusion.fine_tuning.networks import Networks

pytest.importorskip("peft", reason="the extra `lora` is not installed")

SETTINGS = {"r": 2, "lora_alpha": 5, "target_modules": ["to_q", "to_v"], "init_lora_weights": False}
PROMPT = ["a white duck"]


def drawn(denoiser: PretrainedDenoiser) -> Tensor:
    """A picture of `PROMPT`, as `drawn_by_diffusers` draws it."""
    z = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        latents = sample(denoiser.predictor(denoiser.encode(PROMPT)), denoiser.noise_schedule, z, Sampler(4))
        return denoiser.codec.decode(latents).clamp(0, 1)


def drawn_by_diffusers(folder: Path, adapters: list[str]) -> Tensor:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    names = [f"adapter_{place}" for place in range(len(adapters))]
    for name, path in zip(names, adapters, strict=True):
        pipeline.load_lora_weights(path, adapter_name=name)
    pipeline.set_adapters(names)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    settings = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "pt"}
    found: Tensor = pipeline(PROMPT, latents=latents, **settings).images
    return found


def difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


@pytest.fixture(scope="module")
def two_adapters(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders of random adapters of the `sd` pipeline, the second trained on top of the first; one has a dot."""
    made: list[str] = []
    torch.manual_seed(0)
    for name in ("first", "second-0.1"):
        networks = Networks(PretrainedDenoiser(str(folders["sd"]), adapters=list(made)), lora=SETTINGS)
        made.append(str(tmp_path_factory.mktemp("adapters") / name))
        networks.export(made[-1])
    return made


# diffusers' own way to load a second file: peft warns that there is a first one
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("count", [1, 2])
def test_given_adapters_are_part_of_the_model_and_of_its_export(
    folders: dict[str, Path], two_adapters: list[str], tmp_path: Path, count: int
) -> None:
    given = two_adapters[:count]
    denoiser = PretrainedDenoiser(str(folders["sd"]), adapters=given[0] if count == 1 else given)
    assert denoiser.adapters == given
    assert not adapter_layers(denoiser.network)
    plain = PretrainedDenoiser(str(folders["sd"]))
    assert denoiser.network.state_dict().keys() == plain.network.state_dict().keys()
    expected = drawn_by_diffusers(folders["sd"], given)
    assert difference(drawn(denoiser), expected) < 1e-4
    assert difference(drawn(plain), expected) > 1e-3
    again = PretrainedDenoiser(str(export(denoiser, tmp_path / "export")))
    assert difference(drawn(again), expected) < 1e-4


def test_an_export_has_the_adapters_that_are_still_beside_the_weights(
    folders: dict[str, Path], two_adapters: list[str], tmp_path: Path
) -> None:
    denoiser = PretrainedDenoiser(str(folders["sd"]))
    load_lora(denoiser.network, two_adapters[0])
    expected = drawn(denoiser)
    again = PretrainedDenoiser(str(export(denoiser, tmp_path / "export")))
    assert difference(drawn(again), expected) < 1e-4
    assert adapter_layers(denoiser.network)  # the denoiser itself stays as it was


def test_adapters_on_top_of_others_say_so(folders: dict[str, Path], two_adapters: list[str]) -> None:
    first, second = two_adapters
    assert "on_top_of" not in json.loads((Path(first) / "constrained_diffusion.json").read_text())
    assert json.loads((Path(second) / "constrained_diffusion.json").read_text())["on_top_of"] == [first]
    for alone in (second, str(Path(second) / LORA_NAME)):
        with pytest.warns(UserWarning, match=f"were trained on top of {re.escape(first)}: give all of them"):
            PretrainedDenoiser(str(folders["sd"]), adapters=alone)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the adapters in")
        PretrainedDenoiser(str(folders["sd"]), adapters=[first, second])
