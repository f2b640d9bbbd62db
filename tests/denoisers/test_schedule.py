"""Noise schedules from diffusers' scheduler configs."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from constrained_diffusion.denoisers.schedule import DiffusersSchedule, read_schedule, scheduler_config
from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.diffusion.variance_exploding import VarianceExploding
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "EulerDiscrete", "UniPCMultistep"])
@pytest.mark.parametrize(
    "settings",
    [
        {"beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.1, "num_train_timesteps": 40},
        {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ],
)
def test_alpha_bar_is_that_of_the_scheduler_that_wrote_the_file(
    tmp_path: Path, name: str, settings: dict[str, Any], diffusers_log: list[logging.LogRecord]
) -> None:
    scheduler = getattr(diffusers, f"{name}Scheduler")(**settings)
    scheduler.save_pretrained(tmp_path)
    schedule = DiffusersSchedule(json.loads((tmp_path / "scheduler_config.json").read_text()))
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod)
    assert schedule.prediction_type == settings.get("prediction_type", "epsilon")
    assert not diffusers_log  # settings of the scheduler's own are no cause for warnings


def test_the_config_makes_the_same_schedule_again() -> None:
    first = DiffusersSchedule({"num_train_timesteps": 30, "beta_schedule": "sigmoid", "prediction_type": "sample"})
    again = DiffusersSchedule(json.loads(json.dumps(first.config)))
    assert torch.equal(first.alphas_cumprod, again.alphas_cumprod)
    assert again.prediction_type == "sample"
    assert again.config == first.config


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_flow_matching_is_refused(tmp_path: Path, name: str) -> None:
    getattr(diffusers, name)().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{name} is of a flow-matching model: take FlowMatching"):
        DiffusersSchedule(json.loads((tmp_path / "scheduler_config.json").read_text()))


def test_a_flow_in_the_clothes_of_a_solver_is_refused(tmp_path: Path) -> None:
    diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="UniPCMultistepScheduler is of a flow-matching model"):
        DiffusersSchedule(json.loads((tmp_path / "scheduler_config.json").read_text()))


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "CMStochasticIterativeScheduler"])
def test_schedulers_without_betas_are_refused(tmp_path: Path, name: str) -> None:
    getattr(diffusers, name)().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"with a beta_schedule, got that of {name}"):
        DiffusersSchedule(json.loads((tmp_path / "scheduler_config.json").read_text()))


def test_a_misspelt_setting_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no setting 'beta_shedule'; expected some of .*beta_schedule"):
        DiffusersSchedule({"beta_shedule": "linear"})


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
DYNAMIC = {**FLOW, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
SOLVER = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
EDM = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.7, "final_sigmas_type": "sigma_min"}
CONFIGS: dict[str, dict[str, Any]] = {
    "ddpm": {"_class_name": "DDPMScheduler", "beta_schedule": "linear"},
    "ddim": {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "set_alpha_to_one": False, "steps_offset": 1},
    "ddim zero": {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "pndm": {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 1},
    "euler": {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear", "final_sigmas_type": "sigma_min"},
    "karras": {
        "_class_name": "EulerDiscreteScheduler",
        "beta_schedule": "linear",
        "use_karras_sigmas": True,
        "timestep_spacing": "leading",
        "steps_offset": 1,
    },
    "ancestral": {
        "_class_name": "EulerAncestralDiscreteScheduler",
        "beta_schedule": "linear",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    },
    "lcm": {"_class_name": "LCMScheduler", "beta_schedule": "linear", "original_inference_steps": 25},
    "solver": {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "linear", "use_karras_sigmas": True},
    "flow": {**FLOW, "shift": 3.0, "stochastic_sampling": True},
    "flow dynamic": DYNAMIC,
    "flow dpm": {"_class_name": "DPMSolverMultistepScheduler", **SOLVER},
    "flow unipc": {"_class_name": "UniPCMultistepScheduler", **SOLVER},
    "edm": {**EDM, "prediction_type": "v_prediction", "sigma_schedule": "exponential"},
    "consistency": {"_class_name": "CMStochasticIterativeScheduler", "clip_denoised": False, "sigma_max": 60.0},
}


def same(first: NoiseSchedule, again: NoiseSchedule) -> None:
    """Compare sampler, levels, and what the network is told."""
    assert type(first) is type(again)
    assert Sampler(7).of(first) == Sampler(7).of(again)
    assert Sampler(7).pairs(first) == Sampler(7).pairs(again)
    assert first.prediction_type == again.prediction_type
    assert first.prediction == again.prediction
    assert first.least_sigma == again.least_sigma
    times = first.as_timesteps(torch.rand(20, dtype=torch.float64) * first.num_timesteps)
    for found, expected in zip(again.signal_and_sigma(times), first.signal_and_sigma(times), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(first.network_time(times), again.network_time(times))
    if isinstance(first, VariancePreserving) and isinstance(again, VariancePreserving):
        assert (first.boundary_scaling, first.between) == (again.boundary_scaling, again.between)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_config_makes_the_same_sampler_and_levels_again(name: str) -> None:
    first = read_schedule(CONFIGS[name], tokens=1024, time_scale=0.001)
    config = json.loads(json.dumps(scheduler_config(first)))
    same(first, read_schedule(config))
    assert config["_class_name"] == CONFIGS[name]["_class_name"]
    getattr(diffusers, config["_class_name"]).from_config(config)


@pytest.mark.parametrize(
    "schedule",
    [
        FlowMatching(2.0, 500, 0.001, {"clip_sample": True}),
        VarianceExploding(0.01, 50.0, 0.6, 5.0, 300, "edm_v", {"spacing": "exponential"}),
        VarianceExploding(kind="edm"),
        VarianceExploding(num_timesteps=20, kind="consistency"),
    ],
)
def test_a_schedule_of_ones_own_comes_back_from_its_config(schedule: NoiseSchedule) -> None:
    same(schedule, read_schedule(json.loads(json.dumps(scheduler_config(schedule)))))


def test_alphas_of_ones_own_come_back_but_for_rounding() -> None:
    schedule = VariancePreserving(torch.linspace(0.999, 0.01, 50), "v_prediction")
    again = read_schedule(scheduler_config(schedule))
    assert isinstance(again, VariancePreserving)
    assert again.prediction_type == "v_prediction"
    torch.testing.assert_close(again.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_the_dynamic_shift_is_that_of_flux(tokens: int) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    schedule = read_schedule(DYNAMIC, tokens=tokens)
    assert isinstance(schedule, FlowMatching)
    assert schedule.shift == pytest.approx(math.exp(calculate_shift(tokens)), rel=1e-12)
    linear = read_schedule({**DYNAMIC, "time_shift_type": "linear"}, tokens=tokens)
    assert isinstance(linear, FlowMatching)
    assert linear.shift == pytest.approx(calculate_shift(tokens), rel=1e-12)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**FLOW, "invert_sigmas": True}, "sets invert_sigmas to True, which is not supported"),
        ({**FLOW, "shift_terminal": 0.02}, "sets shift_terminal to 0.02, .*: expected None"),
        ({**FLOW, "use_karras_sigmas": True}, "sets use_karras_sigmas to True"),
        ({**FLOW, "use_exponential_sigmas": True}, "sets use_exponential_sigmas to True"),
        ({**FLOW, "use_beta_sigmas": True}, "sets use_beta_sigmas to True"),
        (
            {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "thresholding": True},
            "sets thresholding to True",
        ),
        ({"thresholding": True}, "sets thresholding to True, .*: expected False; take it out of scheduler_config.json"),
        ({**CONFIGS["euler"], "timestep_type": "continuous"}, "timestep_type to continuous, .*: expected discrete"),
        ({**CONFIGS["euler"], "interpolation_type": "log_linear"}, "interpolation_type to log_linear"),
        ({**CONFIGS["euler"], "use_beta_sigmas": True}, "use_beta_sigmas to True"),
        ({**CONFIGS["karras"], "sigma_max": 700.0}, "sigma_max to 700.0"),
        (
            {"_class_name": "CogVideoXDDIMScheduler", "beta_schedule": "linear", "snr_shift_scale": 3.0},
            "snr_shift_scale",
        ),
        ({**EDM, "prediction_type": "sample"}, "one of epsilon, v_prediction for EDM, got 'sample'"),
        ({"_class_name": "CMStochasticIterativeScheduler", "s_noise": 1.01}, "sets s_noise to 1.01"),
        ({**FLOW, "shift": "three"}, "does not make a FlowMatchEulerDiscreteScheduler"),
        ({**DYNAMIC, "max_image_seq_len": 256}, "does not make a FlowMatchEulerDiscreteScheduler"),
        ({**EDM, "rho": None}, "does not make a EDMEulerScheduler"),
    ],
)
def test_settings_that_are_not_supported_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_schedule(config)


OF_HIGHER_ORDER = ["PNDM", "DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete", "DEISMultistep"]


@pytest.mark.parametrize("name", [*OF_HIGHER_ORDER, "FlowMatchHeunDiscrete", "EDMDPMSolverMultistep"])
def test_a_scheduler_of_higher_order_is_warned_of_once(name: str) -> None:
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    config = {**scheduler.config, "_class_name": f"{name}Scheduler"}
    said = f"the pipeline comes with {name}Scheduler: its levels .* each step is of first order"
    with pytest.warns(UserWarning, match=said) as warned:
        read_schedule(config)
    assert len(warned) == 1


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "ancestral", "lcm", "flow", "edm", "consistency"])
@pytest.mark.filterwarnings("error:the pipeline comes with")
def test_schedulers_of_first_order_are_not_warned_of(name: str) -> None:
    read_schedule(CONFIGS[name])


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_solvers_with_flow_sigmas_are_flows(name: str) -> None:
    schedule = read_schedule({**getattr(diffusers, name)(**SOLVER).config, "_class_name": name})
    assert isinstance(schedule, FlowMatching)
    assert schedule.shift == 3.0
    only_told = read_schedule({"_class_name": name, "prediction_type": "flow_prediction"})
    assert isinstance(only_told, FlowMatching)


@pytest.mark.parametrize("config", [{}, {"_class_name": "DDIMScheduler"}])
def test_the_range_that_is_clipped_to_is_the_config_s(config: dict[str, Any]) -> None:
    settings = {"beta_schedule": "linear", "clip_sample": True, "clip_sample_range": 0.4, **config}
    assert Sampler(2).of(read_schedule(settings)).clip_range == 0.4
    assert Sampler(2, clip_range=0.7).of(read_schedule(settings)).clip_range == 0.7


@pytest.mark.parametrize("clip", [True, False])
def test_a_consistency_model_clips_as_its_scheduler_says(clip: bool) -> None:
    schedule = read_schedule({"_class_name": "CMStochasticIterativeScheduler", "clip_denoised": clip})
    assert Sampler(2).of(schedule).clip_sample is clip
