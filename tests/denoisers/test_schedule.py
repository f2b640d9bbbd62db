"""Noise schedules from diffusers' scheduler configs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from constrained_diffusion.denoisers.schedule import DiffusersSchedule


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
