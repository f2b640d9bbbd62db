"""A denoiser's config: plain JSON, and the same denoiser again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.config import build, denoiser_config
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.runtime import stored_networks


def test_a_diffusers_denoiser_is_built_again(unet: Any, answers: Any) -> None:
    schedule = DiffusersSchedule({"num_train_timesteps": 50, "prediction_type": "v_prediction"})
    denoiser = Denoiser(unet(), schedule, Normalizer(mean=[0.25], std=2.0, low=-1.0))
    config = denoiser_config(denoiser)
    assert config == json.loads(json.dumps(config))
    again = build(config)
    again.network.load_state_dict(denoiser.network.state_dict())
    assert torch.equal(answers(again), answers(denoiser))
    assert again.sample_shape == (1, 8, 8)
    assert denoiser_config(again) == config


def test_a_foreign_network_must_be_given(tiny_denoiser: Any, answers: Any) -> None:
    denoiser = tiny_denoiser(prediction_type="sample")
    config = json.loads(json.dumps(denoiser_config(denoiser)))
    assert config["network"] == {"class": "TinyNetwork", "config": None}
    again = build(config, network=denoiser.network)
    assert torch.equal(answers(again), answers(denoiser))  # alpha-bar survives JSON to the last bit
    with pytest.raises(ValueError, match=r"how to make its network \(TinyNetwork\): give the network"):
        build(config)


def test_all_settings_of_a_schedule_come_back(tiny_denoiser: Any) -> None:
    denoiser, settings = tiny_denoiser(), {"spacing": "leading", "steps_offset": 1, "clip_sample": False}
    denoiser.noise_schedule = VariancePreserving([0.9, 0.5, 0.1], "v_prediction", settings, 2, 10.0, "log")
    config = json.loads(json.dumps(denoiser_config(denoiser)))
    again: Any = build(config, denoiser.network).noise_schedule
    for name in ("prediction_type", "sampler_settings", "original_steps", "boundary_scaling", "between"):
        assert getattr(again, name) == getattr(denoiser.noise_schedule, name), name
    assert torch.equal(again.alphas_cumprod, denoiser.noise_schedule.alphas_cumprod)


def test_a_subclass_of_a_diffusers_network_is_foreign(unet: Any) -> None:
    class Mine(type(unet())):  # type: ignore[misc]
        pass

    torch.manual_seed(0)
    network = Mine(**{k: v for k, v in unet().config.items() if not k.startswith("_")})
    assert denoiser_config(Denoiser(network, VariancePreserving([0.5])))["network"] == {"class": "Mine", "config": None}


def test_no_path_of_this_machine_is_kept(pipeline: Any) -> None:
    from diffusers import UNet2DModel

    network = UNet2DModel.from_pretrained(pipeline / "unet")
    assert str(pipeline) not in json.dumps(denoiser_config(Denoiser(network, VariancePreserving([0.5]))))


def test_a_storable_network_is_made_from_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_networks, "NETWORKS", dict(stored_networks.NETWORKS))

    @stored_networks.storable
    class Scaled(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.settings, self.by = {"by": by}, by

        def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return noisy * self.by

    config = json.loads(
        json.dumps(denoiser_config(Denoiser(Scaled(3.0), VariancePreserving([0.5]), sample_shape=(2,))))
    )
    assert config["network"] == {"class": "Scaled", "config": {"by": 3.0}}
    assert build(config)(torch.ones(1, 2), torch.zeros(1)).tolist() == [[3.0, 3.0]]


def test_a_network_of_a_domain_that_nobody_imported_is_found(run_program: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from constrained_diffusion import PretrainedDenoiser\n"
        "assert not any(name.startswith('constrained_diffusion.domains') for name in sys.modules)\n"
        "print(type(PretrainedDenoiser('maze2d_planner').network).__name__)\n"
    )
    assert run_program(program).split() == ["TransformerPlanner"]


def test_a_config_makes_nobody_import_what_it_names(unet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    config = denoiser_config(Denoiser(unet(), VariancePreserving([0.5])))
    for name in ("evil", "evil.Network", "evil:Network"):
        config["network"]["class"] = name
        with pytest.raises(ValueError, match="no noise predictor of diffusers and no registered one"):
            build(config)


@pytest.mark.parametrize("name", ["AutoencoderKL", "DDPMPipeline", "os", "nothing", "DigitCNN"])
def test_only_noise_predictors_of_diffusers_are_made(unet: Any, name: str) -> None:
    config = denoiser_config(Denoiser(unet(), VariancePreserving([0.5])))
    config["network"]["class"] = name
    with pytest.raises(ValueError, match=f"'{name}', which is no noise predictor of .*one like UNet2DModel; register"):
        build(config)


def test_a_damaged_config_is_refused(unet: Any) -> None:
    config = denoiser_config(Denoiser(unet(), VariancePreserving([0.5])))
    config["codec"]["men"] = config["codec"].pop("mean")
    with pytest.raises(
        ValueError, match="the dictionary holds a config that is damaged, or of another version: .*'men'"
    ):
        build(config)


def test_a_schedule_must_come_from_somewhere(unet: Any) -> None:
    config = denoiser_config(Denoiser(unet(), VariancePreserving([0.5])))
    del config["noise_schedule"]
    with pytest.raises(ValueError, match="no noise schedule: give one"):
        build(config)


@pytest.mark.parametrize(
    "wrong",
    [{"norm_num_groups": 0}, {"layers_per_block": "x"}, {"block_out_channels": [-8, 16]}, {"down_block_types": [3, 4]}],
)
def test_settings_that_diffusers_stumbles_over(unet: Any, wrong: dict[str, Any]) -> None:
    config = denoiser_config(Denoiser(unet(), VariancePreserving([0.5])))
    config["network"]["config"] |= wrong
    with pytest.raises(ValueError, match="the dictionary holds a config that is damaged, or of another version"):
        build(config)


@pytest.mark.parametrize("wrong", [[], {"network": "UNet2DModel"}, {"noise_schedule": [0.5]}, {"codec": 3}])
def test_a_config_of_other_json(unet: Any, wrong: Any) -> None:
    whole = denoiser_config(Denoiser(unet(), VariancePreserving([0.5])))
    with pytest.raises(ValueError, match="is damaged: expected an object with network, noise_schedule, codec"):
        build({**whole, **wrong} if isinstance(wrong, dict) else wrong)


@pytest.mark.parametrize("shape", [[1, -8, 8], ["1"], "188", [1.0], [True]])
def test_a_sample_shape_that_is_none(unet: Any, shape: Any) -> None:
    whole = denoiser_config(Denoiser(unet(), VariancePreserving([0.5])))
    with pytest.raises(ValueError, match="expected integers above 0"):
        build({**whole, "sample_shape": shape})
