"""A denoiser's config: plain JSON, and the same denoiser again."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.config import build, denoiser_config
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer


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


def test_a_subclass_of_a_diffusers_network_is_foreign(unet: Any) -> None:
    class Mine(type(unet())):  # type: ignore[misc]
        pass

    torch.manual_seed(0)
    network = Mine(**{k: v for k, v in unet().config.items() if not k.startswith("_")})
    assert denoiser_config(Denoiser(network, NoiseSchedule([0.5])))["network"] == {"class": "Mine", "config": None}


def test_no_path_of_this_machine_is_kept(pipeline: Any) -> None:
    from diffusers import UNet2DModel

    network = UNet2DModel.from_pretrained(pipeline / "unet")
    assert str(pipeline) not in json.dumps(denoiser_config(Denoiser(network, NoiseSchedule([0.5]))))


@pytest.mark.parametrize("name", ["AutoencoderKL", "DDPMPipeline", "os", "nothing"])
def test_only_noise_predictors_of_diffusers_are_made(unet: Any, name: str) -> None:
    config = denoiser_config(Denoiser(unet(), NoiseSchedule([0.5])))
    config["network"]["class"] = name
    with pytest.raises(ValueError, match=f"'{name}', which is no noise predictor of diffusers"):
        build(config)


def test_a_damaged_config_is_refused(unet: Any) -> None:
    config = denoiser_config(Denoiser(unet(), NoiseSchedule([0.5])))
    config["normalizer"]["men"] = config["normalizer"].pop("mean")
    with pytest.raises(
        ValueError, match="the dictionary holds a config that is damaged, or of another version: .*'men'"
    ):
        build(config)


def test_a_schedule_must_come_from_somewhere(unet: Any) -> None:
    config = denoiser_config(Denoiser(unet(), NoiseSchedule([0.5])))
    del config["noise_schedule"]
    with pytest.raises(ValueError, match="no noise schedule: give one"):
        build(config)


@pytest.mark.parametrize(
    "wrong",
    [{"norm_num_groups": 0}, {"layers_per_block": "x"}, {"block_out_channels": [-8, 16]}, {"down_block_types": [3, 4]}],
)
def test_settings_that_diffusers_stumbles_over(unet: Any, wrong: dict[str, Any]) -> None:
    config = denoiser_config(Denoiser(unet(), NoiseSchedule([0.5])))
    config["network"]["config"] |= wrong
    with pytest.raises(ValueError, match="the dictionary holds a config that is damaged, or of another version"):
        build(config)


@pytest.mark.parametrize("wrong", [[], {"network": "UNet2DModel"}, {"noise_schedule": [0.5]}, {"normalizer": 3}])
def test_a_config_of_other_json(unet: Any, wrong: Any) -> None:
    whole = denoiser_config(Denoiser(unet(), NoiseSchedule([0.5])))
    with pytest.raises(ValueError, match="is damaged: expected an object with network, noise_schedule, normalizer"):
        build({**whole, **wrong} if isinstance(wrong, dict) else wrong)


@pytest.mark.parametrize("shape", [[1, -8, 8], ["1"], "188", [1.0], [True]])
def test_a_sample_shape_that_is_none(unet: Any, shape: Any) -> None:
    whole = denoiser_config(Denoiser(unet(), NoiseSchedule([0.5])))
    with pytest.raises(ValueError, match="expected integers above 0"):
        build({**whole, "sample_shape": shape})
