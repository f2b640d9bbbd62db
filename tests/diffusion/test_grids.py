"""The levels of every scheduler's grid against diffusers' own `set_timesteps`, for schedulers with other steps too."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest

from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.diffusion.variance_exploding import VarianceExploding
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving

# diffusers' Euler schedulers make numpy arrays of tensors in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SPACINGS = ["leading", "trailing", "linspace"]


def own_step(scheduler: Any, read: Any) -> Any:
    with pytest.warns(UserWarning, match="comes with"):
        return read(scheduler)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
@pytest.mark.parametrize("steps", [5, 20, 33])
def test_timesteps_of_solvers(spacing: str, name: str, steps: int, read: Any) -> None:
    scheduler = getattr(diffusers, name)(timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    pairs = Sampler(steps).pairs(own_step(scheduler, read))
    assert [level.timestep for level, _ in pairs] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_levels_of_solvers_between_karras(name: str, read: Any) -> None:
    scheduler = getattr(diffusers, name)(use_karras_sigmas=True, timestep_spacing="leading")
    scheduler.set_timesteps(12)
    pairs = Sampler(12).pairs(own_step(scheduler, read))
    found = [level.sigma / level.signal for level, _ in pairs]
    np.testing.assert_allclose(found, scheduler.sigmas[:-1].numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_of_solvers_on_flows(name: str, shift: float, read: Any) -> None:
    scheduler = getattr(diffusers, name)(
        use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction", final_sigmas_type="zero"
    )
    scheduler.set_timesteps(14)
    schedule = own_step(scheduler, read)
    assert isinstance(schedule, FlowMatching)
    found = [level.sigma for level, _ in Sampler(14).pairs(schedule)]
    # UniPC takes 1e-6 off the first level, where its own step would divide by 0.
    np.testing.assert_allclose(found, scheduler.sigmas[:-1].numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "LMSDiscreteScheduler"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("karras", [True, False])
def test_levels_of_schedulers_that_work_on_scaled_samples(name: str, spacing: str, karras: bool, read: Any) -> None:
    scheduler = getattr(diffusers, name)(timestep_spacing=spacing, use_karras_sigmas=karras)
    scheduler.set_timesteps(10)
    theirs = list(dict.fromkeys(scheduler.sigmas.tolist()))  # Heun calls twice at each
    schedule, sampler = own_step(scheduler, read), Sampler(10)
    pairs = sampler.pairs(schedule)
    np.testing.assert_allclose([level.sigma / level.signal for level, _ in pairs], theirs[:-1], rtol=1e-6)
    first = pairs[0][0]
    assert sampler.initial(schedule) / first.signal == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)


@pytest.mark.parametrize("between", ["linear", "log"])
def test_a_level_between_two_timesteps_is_where_it_says(between: Any) -> None:
    abar = np.cos(np.linspace(0.05, 1.5, 100)) ** 2
    schedule = VariancePreserving(abar.tolist(), between=between)
    held = schedule.alphas_cumprod.double().numpy()
    ratios = np.sqrt((1 - held) / held)
    for level, _ in Sampler(9, spacing="karras").pairs(schedule):
        assert level.signal**2 + level.sigma**2 == pytest.approx(1, abs=1e-12)
        share, below = level.timestep % 1, int(level.timestep)
        if share == 0:
            continue
        pair = ratios[[below, below + 1]]
        value = np.exp(np.interp(share, [0, 1], np.log(pair))) if between == "log" else np.interp(share, [0, 1], pair)
        assert level.sigma / level.signal == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize(
    ("schedule", "spacing", "said"),
    [
        (
            FlowMatching(),
            "karras",
            "one of linear, training, dynamic, dpm, unipc for a flow-matching model, got 'karras'",
        ),
        (VarianceExploding(), "leading", "karras, exponential or list for a model of EDM's family, got 'leading'"),
        (
            VariancePreserving([0.5, 0.2, 0.0], "sample"),
            "karras",
            "infinite where alpha-bar ends in 0",
        ),
    ],
)
def test_spacings_of_other_families_are_refused(schedule: Any, spacing: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampler(3, spacing=spacing).pairs(schedule)


@pytest.mark.parametrize("schedule", [FlowMatching(num_timesteps=10), VarianceExploding(num_timesteps=10)])
def test_more_steps_than_levels_are_refused(schedule: Any) -> None:
    with pytest.raises(ValueError, match="at most 10 steps, the schedule's length, got 11"):
        Sampler(11).pairs(schedule)
