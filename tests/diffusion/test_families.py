"""The one sampler against diffusers' own scheduler of every family, step by step, with the same network and noises."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.sampler import Sampler, sample

# diffusers' Euler schedulers make numpy arrays of tensors in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
CURVES: list[dict[str, Any]] = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]


def agree(ours: NoiseSchedule, scheduler: Any, sampler: Sampler, tools: Any, limit: float | None, **grid: Any) -> None:
    """Compare one sample each; diffusers computes in single precision inside `step`."""
    draw, predictor, diffusers_sample = tools
    z = draw(3, 1 + sampler.injecting_steps(ours), 4)
    expected = diffusers_sample(scheduler, z, **(grid or {"num_inference_steps": sampler.steps}))
    found = sample(predictor(ours, limit), ours, z, sampler) / sampler.pairs(ours)[-1][1].signal
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.fixture(scope="module")
def tools(draw: Any, predictor: Any, diffusers_sample: Any) -> Any:
    return draw, predictor, diffusers_sample


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_euler(spacing: str, curve: dict[str, Any], kind: str, final: str, read: Any, tools: Any) -> None:
    settings: dict[str, Any] = {"prediction_type": kind, "timestep_spacing": spacing, "final_sigmas_type": final}
    settings["steps_offset"] = int(spacing == "leading")
    scheduler = diffusers.EulerDiscreteScheduler(**SD, **settings, **curve)
    agree(read(scheduler), scheduler, Sampler(7), tools, None)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_euler_from_no_signal_at_all(kind: str, name: str, read: Any, tools: Any) -> None:
    scheduler = getattr(diffusers, name)(**SD, **ZERO, prediction_type=kind)
    # From sigma = 4096 their single precision loses the more, the longer the first step is: 1e-5 of nine steps.
    agree(read(scheduler), scheduler, Sampler(20, float("Ancestral" in name)), tools, None)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_ancestral_is_eta_1(spacing: str, kind: str, read: Any, tools: Any) -> None:
    settings = {"prediction_type": kind, "timestep_spacing": spacing}
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD, **settings)
    agree(read(scheduler), scheduler, Sampler(8, eta=1.0), tools, None)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("stochastic", [False, True])
def test_flow_euler(shift: float, stochastic: bool, read: Any, tools: Any) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=stochastic)
    agree(read(scheduler), scheduler, Sampler(9), tools, None)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_flow_euler_with_the_shift_of_flux(tokens: int, kind: Any, read: Any, tools: Any) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    schedule, mu = read(scheduler, tokens=tokens), calculate_shift(tokens)
    agree(schedule, scheduler, Sampler(6), tools, None, num_inference_steps=6, mu=mu)  # as SD 3's pipeline does
    agree(schedule, scheduler, Sampler(6, spacing="linear"), tools, None, sigmas=np.linspace(1.0, 1 / 6, 6), mu=mu)


@pytest.mark.parametrize("curve", ["karras", "exponential"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_edm_euler(curve: Any, kind: Any, final: Any, read: Any, tools: Any) -> None:
    settings = {"sigma_schedule": curve, "prediction_type": kind, "final_sigmas_type": final, "sigma_data": 0.7}
    scheduler = diffusers.EDMEulerScheduler(**settings, sigma_max=60.0)
    agree(read(scheduler), scheduler, Sampler(9), tools, None)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_consistency_models(clip: bool, steps: int, read: Any, tools: Any) -> None:
    scheduler = diffusers.CMStochasticIterativeScheduler(clip_denoised=clip)
    agree(read(scheduler), scheduler, Sampler(steps), tools, 1.0 if clip else None)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("to_one", [True, False])
def test_latent_consistency_models(kind: str, steps: int, to_one: bool, read: Any, tools: Any) -> None:
    scheduler = diffusers.LCMScheduler(prediction_type=kind, set_alpha_to_one=to_one)
    agree(read(scheduler), scheduler, Sampler(steps), tools, None)


@pytest.mark.parametrize("settings", [{"timestep_spacing": "leading", "steps_offset": 1, **SD}, {**ZERO, **SD}])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_as_its_config_says(settings: Any, to_one: bool, read: Any, tools: Any) -> None:
    draw, predictor, diffusers_sample = tools
    settings = {**settings, "set_alpha_to_one": to_one, "clip_sample": False, "prediction_type": "v_prediction"}
    scheduler = diffusers.DDIMScheduler(**settings)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double() if to_one else scheduler.alphas_cumprod[0]
    z, ours = draw(3, 1, 4), read(scheduler)
    found = sample(predictor(ours), ours, z, Sampler(10))
    torch.testing.assert_close(found, diffusers_sample(scheduler, z, num_inference_steps=10), rtol=0, atol=1e-10)


CASES: list[tuple[str, dict[str, Any], float]] = [
    ("DDIMScheduler", {"prediction_type": "v_prediction", **ZERO}, 1.0),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 0.5),
    ("LCMScheduler", {}, 0.0),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0}, 0.0),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0}, 1.0),
    ("EDMEulerScheduler", {"sigma_max": 5.0}, 0.0),
    ("EDMEulerScheduler", {"sigma_max": 5.0}, 1.0),
    ("CMStochasticIterativeScheduler", {"sigma_max": 5.0}, 0.0),
]


@pytest.mark.parametrize(("name", "settings", "eta"), CASES)
def test_gradients_reach_all_of_z(name: str, settings: Any, eta: float, read: Any, tools: Any) -> None:
    draw, predictor, _ = tools
    schedule, sampler = read(getattr(diffusers, name)(**settings)), Sampler(3, eta, clip_sample=False)
    z = draw(2, 1 + sampler.injecting_steps(schedule), 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda noise: sample(predictor(schedule), schedule, noise, sampler), z)
    (gradient,) = torch.autograd.grad(sample(predictor(schedule), schedule, z, sampler).sum(), z)
    assert (gradient.abs().amax((0, 2)) > 1e-12).all()
