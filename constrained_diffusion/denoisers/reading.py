"""Is a network what its config says? Its error on its own samples says so, and which other reading fits it better.

A model that is read rightly predicts the noise of its own samples well. Read as another prediction type, schedule, time
scale or data range, it draws something else, and predicts that badly. Nothing but the network is needed.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained_diffusion.condition import Condition, moved
from constrained_diffusion.denoisers.adapter import Denoiser, checked_output
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.runtime.probing import undisturbed
from constrained_diffusion.runtime.randomness import keyed_normal

SUSPICIOUS = 0.3  #: an error above this is looked into
CLEARLY = 0.5  #: another reading fits clearly better where its error is below this share of the stated one
STEPS, READING = 10, 0x52  # of the sampler; a stream of random numbers
RATIOS = (0.3, 0.6, 1.0, 1.7, 3.0)  #: of noise to signal, at which the error is measured


def own_error(denoiser: Denoiser, condition: Condition | None = None, seeds: Sequence[int] = range(8)) -> float:
    """Return the error of the network's output on its own samples, relative to what it should be; 0 is perfect.

    It is the mean, over the same ratios of noise to signal in every reading, of the relative squared error of the
    velocity s eps - sigma x_0, which takes both parts of a prediction into account; infinite where something is not
    finite.

    Args:
        denoiser: the network and how it is read.
        condition: of the samples, one row per seed.
        seeds: of its samples.
    """
    weight = next((p for p in denoiser.network.parameters() if p.is_floating_point()), torch.empty(0))
    schedule, sampler, told = denoiser.noise_schedule, Sampler(STEPS), moved(condition, weight.device)
    with undisturbed(denoiser.network, weight.device):
        z = seeded_noise(seeds, denoiser.sample_shape, sampler, schedule).to(weight)
        clean = denoiser.codec.clamp(sampler(denoiser.predictor(told), schedule, z))
        noise = keyed_normal([(READING, seed) for seed in seeds], denoiser.sample_shape).to(clean)
        errors = []
        for timestep in _at_ratios(schedule):
            timesteps = timestep.expand(len(clean)).to(clean.device)
            noisy = schedule.add_noise(clean, noise, timesteps)
            output = denoiser.call(denoiser.network, noisy, timesteps, told)
            found = schedule.to_clean(output, noisy, timesteps), schedule.to_noise(output, noisy, timesteps)
            signal, sigma = schedule.coefficients(timesteps, clean)
            error = signal * (found[1] - noise) - sigma * (found[0] - clean)
            size = signal * noise - sigma * clean
            errors.append(float(error.double().square().sum() / size.double().square().sum()))
    return sum(errors) / len(errors) if all(map(math.isfinite, errors)) else math.inf


def check_ends(denoiser: Denoiser, condition: Condition | None = None, seeds: Sequence[int] = range(2)) -> None:
    """Raise ValueError where the network's output, or what it means, is not finite at an end of the schedule.

    Args:
        denoiser: the network and how it is read.
        condition: of the rows, one for each seed.
        seeds: of the noise that it is shown.
    """
    weight = next((p for p in denoiser.network.parameters() if p.is_floating_point()), torch.empty(0))
    schedule, told = denoiser.noise_schedule, moved(condition, weight.device)
    noise = keyed_normal([(READING, seed) for seed in seeds], denoiser.sample_shape).to(weight)
    with undisturbed(denoiser.network, weight.device):
        for name, place in (("first", 0.0), ("last", schedule.num_timesteps * (1 - 1e-9))):
            timesteps = schedule.as_timesteps(torch.full((len(noise),), place, dtype=torch.float64)).to(weight.device)
            noisy = schedule.coefficients(timesteps, noise)[1] * noise
            output = denoiser.call(denoiser.network, noisy, timesteps, told)
            clean = schedule.to_clean(output, noisy, timesteps)
            for part, values in (("output", output), ("predicted clean sample", clean)):
                if not bool(values.isfinite().all()):
                    raise ValueError(
                        f"the {part} of {type(denoiser.network).__name__} is not finite at the {name} timestep of its "
                        f"schedule ({float(timesteps[0]):g}): expected numbers; see whether its weights are whole, and "
                        "its prediction type and schedule those of its training."
                    )


def _at_ratios(schedule: NoiseSchedule) -> list[Tensor]:
    """Return the timesteps at which sigma / s is nearest to each of `RATIOS`."""
    places = torch.linspace(0, schedule.num_timesteps * (1 - 1e-9), 1000, dtype=torch.float64)
    timesteps = schedule.as_timesteps(places)
    signal, sigma = (part.cpu() for part in schedule.signal_and_sigma(timesteps))
    return [timesteps[int((sigma - ratio * signal).abs().div(signal + sigma).argmin())] for ratio in RATIOS]


def other_readings(denoiser: Denoiser) -> Iterator[tuple[str, Denoiser]]:
    """Yield the ways in which the same network may have been meant, each with a name."""

    def read(
        schedule: NoiseSchedule | None = None, codec: Normalizer | None = None, time: float = 1.0, sign: float = 1.0
    ) -> Denoiser:
        shared = [*denoiser.children(), *vars(denoiser).values()]  # nothing is copied but what holds them
        other = copy.deepcopy(denoiser, {id(part): part for part in shared if not isinstance(part, dict)})
        other.codec, other.noise_schedule = codec or denoiser.codec, schedule or denoiser.noise_schedule

        def call(network: nn.Module, noisy: Tensor, timestep: Tensor, **told: Any) -> Tensor:
            return sign * checked_output(network, denoiser._call(network, noisy, timestep * time, **told), noisy)

        other._call = call
        return other

    stated = denoiser.noise_schedule
    if isinstance(stated, VariancePreserving):
        for kind in ("epsilon", "sample", "v_prediction"):
            if kind != stated.prediction_type and (kind != "epsilon" or stated.alphas_cumprod[-1] > 0):
                yield f"prediction_type {kind}", read(VariancePreserving(stated.alphas_cumprod, kind))
        for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            ends = {"beta_start": 0.00085, "beta_end": 0.012} if name == "scaled_linear" else {}
            config = {"num_train_timesteps": stated.num_timesteps, "beta_schedule": name, **ends}
            other = DiffusersSchedule({**config, "prediction_type": stated.prediction_type})
            if not torch.allclose(other.alphas_cumprod, stated.alphas_cumprod.cpu().float(), atol=1e-3):
                yield f"beta_schedule {name}", read(other.to(stated.alphas_cumprod.device))
        yield "FlowMatching as its schedule", read(FlowMatching(num_timesteps=stated.num_timesteps))
    if isinstance(stated, FlowMatching):
        yield "a network that returns x_0 - eps", read(sign=-1.0)
    for factor, name in ((1 / stated.num_timesteps, "in [0, 1]"), (float(stated.num_timesteps), "in [0, T]")):
        yield f"a network that expects its time {name}", read(time=factor)
    if isinstance(denoiser.codec, Normalizer) and denoiser.codec.low is not None:
        yield "data in [-1, 1] for the network", read(codec=Normalizer(0.5, 0.5, 0.0, 1.0))
        yield "data in [0, 1] for the network", read(codec=Normalizer(0.0, 1.0, 0.0, 1.0))


def _tried(denoiser: Denoiser, condition: Condition | None, seeds: Sequence[int]) -> float:
    try:
        return own_error(denoiser, condition, seeds)
    except Exception:  # a network may be unable to take another reading, in ways of its own
        return math.inf


def check_reading(denoiser: Denoiser, condition: Condition | None = None, seeds: Sequence[int] = range(8)) -> float:
    """Return the network's error on its own samples, and warn where another reading fits it clearly better.

    Args:
        denoiser: the network and how it is read.
        condition: of the samples, one row per seed.
        seeds: of its samples.
    """
    error = own_error(denoiser, condition, seeds)
    if error <= SUSPICIOUS:
        return error
    found = {name: _tried(other, condition, seeds) for name, other in other_readings(denoiser)}
    best = min(found, key=lambda name: found[name])
    if found[best] < CLEARLY * error:
        warnings.warn(
            f"the network does not fit what its config says: its error on its own samples is {error:.2f}, but with "
            f"{best} it is {found[best]:.2f}; see which of them it was trained with.",
            stacklevel=2,
        )
    return error
