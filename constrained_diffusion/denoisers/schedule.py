"""Noise schedules and sampler settings, read from diffusers' scheduler configs."""

from __future__ import annotations

import inspect
import math
from typing import Any

from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.variance_exploding import VarianceExploding
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving

LONGEST = 1_000_000  #: noise levels; a thousand are usual
OWN_STEP = {  # schedulers of first order, whose step is ours too
    *("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"),
    *("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "CMStochasticIterativeScheduler"),
}


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
        if class_name.startswith("Euler") and config.get("rescale_betas_zero_snr"):
            abar[-1] = 2**-24  # as these do, so that sigma / s is finite
        lcm = class_name == "LCMScheduler"
        super().__init__(
            abar,
            scheduler.config["prediction_type"],
            sampler_settings(config),
            int(config.get("original_inference_steps") or 50),
            float(config.get("timestep_scaling") or 10.0) if lcm else None,
        )
        # Of another scheduler its own settings: DDPMScheduler's defaults would clip, and end on another level.
        own = class_name == "DDPMScheduler"
        self.config: dict[str, Any] = {key: scheduler.config[key] for key in expected} if own else dict(config)


def is_flow(config: dict[str, Any]) -> bool:
    """Return whether a scheduler config is of a flow-matching model."""
    flow = config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas")
    return "Flow" in str(config.get("_class_name")) or bool(flow)


def sampler_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Sampler` that a scheduler config of DDPM's family says; what it leaves out is ours."""
    if "_class_name" not in config:  # a written one
        names = {"timestep_spacing": "spacing", "steps_offset": "steps_offset", "clip_sample": "clip_sample"}
        return {ours: config[name] for name, ours in names.items() if name in config}
    import diffusers

    name = str(config["_class_name"])
    cls: Any = getattr(diffusers, name, diffusers.DDIMScheduler)
    full = cls.from_config({key: value for key, value in config.items() if not key.startswith("_")}).config
    euler = name.startswith("Euler")
    spacing = full.get("timestep_spacing", "leading")
    start = "noise" if euler and spacing != "leading" else "marginal"
    if name == "LCMScheduler":
        spacing = "lcm"
    elif full.get("use_karras_sigmas"):
        spacing = "karras"
    elif full.get("use_exponential_sigmas"):
        spacing = "exponential"
    elif euler and spacing == "linspace":
        spacing = "interpolated"
    ends = full.get("final_sigmas_type", "zero") == "zero" if euler else full.get("set_alpha_to_one", True)
    return {
        "spacing": spacing,
        "steps_offset": full.get("steps_offset", 0),
        "set_alpha_to_one": bool(ends),
        "clip_sample": bool(full.get("clip_sample", False)),
        "renoise": name == "LCMScheduler",
        "start": start,
    }


def read_schedule(config: dict[str, Any], tokens: int = 4096, time_scale: float = 1.0) -> NoiseSchedule:
    """Return the noise schedule of a diffusers scheduler config, of any family.

    Args:
        config: the content of a `scheduler_config.json`.
        tokens: of one sample, on which a dynamic shift depends.
        time_scale: of a flow-matching network, see `FlowMatching`.

    Raises:
        ValueError: the scheduler has a setting that is not supported, or is of no known family.
    """
    name = str(config.get("_class_name", "DDPMScheduler"))
    if name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        return _edm(config)
    if name == "CMStochasticIterativeScheduler":
        return _consistency(config)
    if is_flow(config):
        return _flow(config, tokens, time_scale)
    return DiffusersSchedule(config)


def _flow(config: dict[str, Any], tokens: int, time_scale: float) -> FlowMatching:
    for key in ("invert_sigmas", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        if config.get(key):
            raise ValueError(
                f"the flow-matching scheduler sets {key}, which is not supported: expected an even or a shifted grid; "
                "take it out of scheduler_config.json, or give `noise_schedule` as a FlowMatching."
            )
    total, dynamic = config.get("num_train_timesteps", 1000), config.get("use_dynamic_shifting", False)
    shift = config.get("flow_shift", config.get("shift", 1.0)) or 1.0
    if dynamic:  # FLUX's: more tokens, more noise
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        mu = base + (most - base) * (tokens - low) / (high - low)
        shift = math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
    schedule = FlowMatching(shift, total, time_scale, {"spacing": "linear" if dynamic else "training"})
    schedule.config = dict(config)
    return schedule


def _edm(config: dict[str, Any]) -> VarianceExploding:
    schedule = VarianceExploding(
        config.get("sigma_min", 0.002),
        config.get("sigma_max", 80.0),
        config.get("sigma_data", 0.5),
        config.get("rho", 7.0),
        config.get("num_train_timesteps", 1000),
        "edm_v" if config.get("prediction_type") == "v_prediction" else "edm",
        {
            "spacing": config.get("sigma_schedule", "karras"),
            "set_alpha_to_one": config.get("final_sigmas_type", "zero") == "zero",
        },
    )
    schedule.config = dict(config)
    return schedule


def _consistency(config: dict[str, Any]) -> VarianceExploding:
    schedule = VarianceExploding(
        config.get("sigma_min", 0.002),
        config.get("sigma_max", 80.0),
        config.get("sigma_data", 0.5),
        config.get("rho", 7.0),
        config.get("num_train_timesteps", 40),
        "consistency",
        {"spacing": "list", "clip_sample": config.get("clip_denoised", True), "start": "noise"},
    )
    schedule.config = dict(config)
    return schedule


def scheduler_config(schedule: NoiseSchedule) -> dict[str, Any]:
    """Return the config of a diffusers scheduler that samples as `schedule` does, with its `_class_name`."""
    config = getattr(schedule, "config", None)
    if config is not None:
        return {"_class_name": "DDPMScheduler", **config}
    if isinstance(schedule, FlowMatching):
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": schedule.num_timesteps,
            "shift": schedule.shift,
        }
    if isinstance(schedule, VarianceExploding):
        names = ("sigma_min", "sigma_max", "sigma_data", "rho")
        class_name = "CMStochasticIterativeScheduler" if schedule.kind == "consistency" else "EDMEulerScheduler"
        found = {"_class_name": class_name, "num_train_timesteps": schedule.num_timesteps}
        return {**found, **{name: getattr(schedule, name) for name in names}}
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
