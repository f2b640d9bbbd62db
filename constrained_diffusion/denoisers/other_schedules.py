"""Noise schedules of flow matching, EDM and consistency models, read from diffusers' scheduler configs."""

from __future__ import annotations

import math
from typing import Any

from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.variance_exploding import Kind, VarianceExploding

#: What the names of those schedulers begin with that leave the cleanest level of a grid out.
SOLVERS = ("DPMSolver", "UniPC", "DEIS", "SASolver")
# Settings that would change levels or steps and are not supported, with the value at which they do nothing.
UNSUPPORTED: dict[str, Any] = {
    **dict.fromkeys(("thresholding", "use_beta_sigmas", "use_lu_lambdas"), False),
    "snr_shift_scale": 1.0,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    **dict.fromkeys(("sigma_min", "sigma_max"), None),
}
UNSUPPORTED_FLOW: dict[str, Any] = {
    **dict.fromkeys(("invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False),
    **dict.fromkeys(("shift_terminal", "scale_factors"), None),
}


def refuse(config: dict[str, Any], unsupported: dict[str, Any]) -> None:
    """Raise ValueError where `config` sets one of `unsupported` to a value at which it does something."""
    for key, harmless in unsupported.items():
        if config.get(key) not in (None, harmless):
            raise ValueError(
                f"the scheduler sets {key} to {str(config[key])[:40]}, which is not supported: expected {harmless}; "
                "take it out of scheduler_config.json, or give `noise_schedule` and `sampler` yourself."
            )


def flow(config: dict[str, Any], tokens: int, time_scale: float) -> FlowMatching:
    """Return the schedule of a flow-matching model; `tokens` and `time_scale` as in `read_schedule`."""
    name = str(config.get("_class_name"))
    refuse(config, UNSUPPORTED_FLOW)
    dynamic = config.get("use_dynamic_shifting", False)
    shift = config.get("flow_shift", config.get("shift", 1.0)) or 1.0
    if dynamic:  # FLUX's: more tokens, more noise
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        mu = base + (most - base) * (tokens - low) / (high - low)
        shift = math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
    spacing = "dynamic" if dynamic else "training"
    if name.startswith(SOLVERS):
        spacing = "unipc" if name.startswith("UniPC") else "dpm"
    settings = {"spacing": spacing, "renoise": bool(config.get("stochastic_sampling", False))}
    schedule = FlowMatching(shift, config.get("num_train_timesteps", 1000), time_scale, settings | _own(config))
    schedule.config = {**config, "_tokens": tokens, "_time_scale": time_scale}
    return schedule


def edm(config: dict[str, Any]) -> VarianceExploding:
    """Return the schedule of a model of EDM's family."""
    refuse(config, {"thresholding": False})
    kinds: dict[str, Kind] = {"epsilon": "edm", "v_prediction": "edm_v"}
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in kinds:
        raise ValueError(f"prediction_type must be one of {', '.join(kinds)} for EDM, got '{str(prediction)[:40]}'.")
    settings = {
        "spacing": config.get("sigma_schedule", "karras"),
        "set_alpha_to_one": config.get("final_sigmas_type", "zero") == "zero",
    }
    return _exploding(config, config.get("num_train_timesteps", 1000), kinds[prediction], settings)


def consistency(config: dict[str, Any]) -> VarianceExploding:
    """Return the schedule of a consistency model."""
    refuse(config, {"s_noise": 1.0})
    settings = {"clip_sample": config.get("clip_denoised", True)}
    return _exploding(config, config.get("num_train_timesteps", 40), "consistency", settings)


def _exploding(config: dict[str, Any], total: int, kind: Kind, settings: dict[str, Any]) -> VarianceExploding:
    known = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
    numbers = {name: config.get(name, default) for name, default in known.items()}
    schedule = VarianceExploding(**numbers, num_timesteps=total, kind=kind, sampler_settings=settings | _own(config))
    schedule.config = dict(config)
    return schedule


def _own(config: dict[str, Any]) -> dict[str, Any]:
    """Return the sampler's settings that no scheduler of diffusers has a word for; see `scheduler_config`."""
    settings: dict[str, Any] = config.get("_sampler_settings", {})
    return settings
