"""Noise schedules and sampler settings, read from diffusers' scheduler configs."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from constrained_diffusion.denoisers.other_schedules import SOLVERS, UNSUPPORTED, consistency, edm, flow, refuse
from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.variance_exploding import VarianceExploding
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving

LONGEST = 1_000_000  #: noise levels; a thousand are usual
OWN_STEP = {  # schedulers of first order, whose step is ours too
    *("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"),
    *("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "CMStochasticIterativeScheduler"),
}
SCALED = ("Euler", "Heun", "KDPM2", "LMS")  #: names of schedulers that work on x_t / s


class DiffusersSchedule(VariancePreserving):
    """The noise schedule of a diffusers scheduler config, of DDPM's family.

    Args:
        config: keyword arguments of `diffusers.DDPMScheduler`, or the content of a `scheduler_config.json`, for example
            `{num_train_timesteps: 1000, beta_schedule: squaredcos_cap_v2, prediction_type: epsilon}`.

    Raises:
        ValueError: the config belongs to a scheduler of another family, or one without `_class_name` has a key that
            DDPMScheduler does not know.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        from diffusers import DDPMScheduler

        class_name = str(config.get("_class_name", "DDPMScheduler"))
        if is_flow(config):
            raise ValueError(f"{class_name} is of a flow-matching model: take FlowMatching(shift=..) in place of it.")
        if class_name not in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler") and "beta_schedule" not in config:
            raise ValueError(
                f"expected a scheduler config with a beta_schedule, got that of {class_name}, which is parametrised "
                "otherwise; give the noise schedule of the model's training as a DDPMScheduler config."
            )
        expected = [name for name in inspect.signature(DDPMScheduler.__init__).parameters if name != "self"]
        unknown = sorted(key for key in config if key not in expected and not key.startswith("_"))
        if unknown and "_class_name" not in config:  # a written one; other schedulers' files may hold keys of their own
            raise ValueError(
                f"a scheduler config has no setting '{unknown[0]}'; expected some of {', '.join(expected)}."
            )
        refuse(config, UNSUPPORTED)
        levels = config.get("num_train_timesteps", 1000)
        if type(levels) is not int or not 1 <= levels <= LONGEST:
            raise ValueError(f"num_train_timesteps must be an integer in 1 .. {LONGEST:,}, got {str(levels)[:80]}.")
        try:
            known = {"timestep_spacing": "trailing"} if "_class_name" not in config else {}
            known |= {key: value for key, value in config.items() if key in expected}
            scheduler = DDPMScheduler.from_config(known)
        except Exception as error:  # what it raises on settings of the wrong kind has no common base
            raise ValueError(f"this scheduler config does not make a DDPMScheduler: {error}.") from error
        abar = scheduler.alphas_cumprod
        if class_name.startswith(("Euler", "DPMSolverMultistep", "UniPC")) and config.get("rescale_betas_zero_snr"):
            abar = abar.clamp(min=2**-24)  # as these do, so that sigma / s is finite
        lcm, settings = class_name == "LCMScheduler", sampler_settings(config)
        super().__init__(
            abar,
            scheduler.config["prediction_type"],
            settings,
            int(config.get("original_inference_steps") or 50),
            float(config.get("timestep_scaling") or 10.0) if lcm else None,
            "log" if settings.get("spacing", "").startswith(("karras", "exponential")) else "linear",
        )
        written = {key: scheduler.config[key] for key in expected} | {"_sampler_settings": settings}
        self.config: dict[str, Any] = dict(config) if "_class_name" in config else written


def is_flow(config: dict[str, Any]) -> bool:
    """Return whether a scheduler config is of a flow-matching model."""
    flow = config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas")
    return "Flow" in str(config.get("_class_name")) or bool(flow)


def sampler_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Sampler` that a scheduler config of DDPM's family says; what it leaves out is ours."""
    if "_sampler_settings" in config:  # written by us
        return dict(config["_sampler_settings"])
    if "_class_name" not in config:  # by a user
        names = {"timestep_spacing": "spacing", "steps_offset": "steps_offset", "clip_sample": "clip_sample"}
        names |= {"clip_sample_range": "clip_range"}
        return {ours: config[name] for name, ours in names.items() if name in config}
    import diffusers

    name = str(config["_class_name"])
    cls: Any = getattr(diffusers, name, diffusers.DDIMScheduler)
    defaults = {key: parameter.default for key, parameter in inspect.signature(cls.__init__).parameters.items()}
    full = {**defaults, **config}
    spacing, start = full.get("timestep_spacing", "leading"), "marginal"
    if name.startswith(SCALED):
        start = "marginal" if spacing == "leading" else "noise"
        spacing = "interpolated" if spacing == "linspace" else spacing
    elif name.startswith(SOLVERS) and spacing != "trailing":
        spacing = f"solver_{spacing}"
    for curve in ("karras", "exponential"):
        if full.get(f"use_{curve}_sigmas"):
            between = name.startswith(SCALED) and spacing != "interpolated"
            spacing = f"{curve}_{spacing}" if between else curve
    lcm = name == "LCMScheduler"
    ends = full.get("final_sigmas_type", "zero") == "zero" and full.get("set_alpha_to_one", True)
    return {
        "spacing": "lcm" if lcm else spacing,
        "steps_offset": full.get("steps_offset", 0),
        "set_alpha_to_one": bool(ends or lcm),
        "clip_sample": bool(full.get("clip_sample", False)),
        "clip_range": float(full.get("clip_sample_range", 1.0)) if full.get("clip_sample") else None,
        "renoise": lcm,
        "start": start,
    }


def read_schedule(config: dict[str, Any], tokens: int = 4096, time_scale: float = 1.0) -> NoiseSchedule:
    """Return the noise schedule of a diffusers scheduler config, of any family.

    A scheduler with a step of its own, such as one of higher order, is warned of.

    Args:
        config: the content of a `scheduler_config.json`, or what `scheduler_config` returned.
        tokens: of one sample, on which a dynamic shift depends.
        time_scale: of a flow-matching network, see `FlowMatching`.

    Raises:
        ValueError: the scheduler has a setting that is not supported, or is of no known family.
    """
    name = str(config.get("_class_name", "DDPMScheduler"))
    try:
        if name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
            schedule: NoiseSchedule = edm(config)
        elif name == "CMStochasticIterativeScheduler":
            schedule = consistency(config)
        elif is_flow(config):
            schedule = flow(config, config.get("_tokens", tokens), config.get("_time_scale", time_scale))
        else:
            schedule = DiffusersSchedule(config)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"this scheduler config does not make a {name}: {error}.") from error
    if name not in OWN_STEP:
        warnings.warn(
            f"the pipeline comes with {name}: its levels and its prediction type are taken, but each step is of first "
            "order, as DDIM and Euler take it; give `sampler` more steps than that scheduler needs.",
            stacklevel=2,
        )
    return schedule


def scheduler_config(schedule: NoiseSchedule) -> dict[str, Any]:
    """Return the config of a diffusers scheduler that samples as `schedule` does, with its `_class_name`.

    Diffusers passes over what begins with an underscore; `read_schedule` knows it.
    """
    if schedule.config is not None:
        return {"_class_name": "DDPMScheduler", **schedule.config}
    shared = {"num_train_timesteps": schedule.num_timesteps, "_sampler_settings": schedule.sampler_settings}
    if isinstance(schedule, FlowMatching):
        name = "FlowMatchEulerDiscreteScheduler"
        return {"_class_name": name, "shift": schedule.shift, "_time_scale": schedule.time_scale, **shared}
    if isinstance(schedule, VarianceExploding):
        numbers = {name: getattr(schedule, name) for name in ("sigma_min", "sigma_max", "sigma_data", "rho")}
        if schedule.kind == "consistency":
            return {"_class_name": "CMStochasticIterativeScheduler", **numbers, **shared}
        kind = "v_prediction" if schedule.kind == "edm_v" else "epsilon"
        return {"_class_name": "EDMEulerScheduler", "prediction_type": kind, **numbers, **shared}
    assert isinstance(schedule, VariancePreserving)
    abar = schedule.alphas_cumprod.double()
    betas = 1 - abar / abar.roll(1).index_fill(0, abar.new_zeros(1).long(), 1.0)
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "prediction_type": schedule.prediction_type,
        "timestep_spacing": "trailing",
    }
