"""The config of a denoiser: everything but its weights, in plain JSON types, and back."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.families import Family
from constrained_diffusion.denoisers.schedule import DiffusersSchedule, read_schedule, scheduler_config
from constrained_diffusion.diffusion.codec import Codec
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.runtime import stored_networks

_OBJECTS = ("network", "noise_schedule", "codec", "null_condition")  #: parts of a config that are objects themselves
_OPTIONAL = ("codec", "null_condition", "latent")  #: left out where there is nothing to say


class Parts(NamedTuple):
    """What a `Denoiser` is made of, in the order of its arguments; None where the source does not say."""

    network: nn.Module
    noise_schedule: NoiseSchedule
    codec: Codec | None = None
    sample_shape: tuple[int, ...] | None = None
    null_condition: dict[str, Any] | None = None
    text: Any = None  #: the pipeline of diffusers that has the text encoders
    family: Family | None = None  #: of a model that takes prompts
    origin: Path | None = None  #: the folder of the pipeline
    pipeline_class: str | None = None  #: its class
    latent: bool = False  #: whether the network works on what an autoencoder makes


def denoiser_config(denoiser: Denoiser) -> dict[str, Any]:
    """Return what `build` needs to make `denoiser` again, without its weights; plain JSON types only.

    The network's config is None where its class is neither one of diffusers' nor `storable`; the codec is None where
    it has weights of its own, which its folder holds.
    """
    config = {
        "network": network_config(denoiser.network),
        "noise_schedule": schedule_config(denoiser.noise_schedule),
        "codec": denoiser.codec.settings if isinstance(denoiser.codec, Normalizer) else None,
        "sample_shape": denoiser.sample_shape,
        "null_condition": denoiser.null_condition or None,
        "latent": True if not isinstance(denoiser.codec, Normalizer) else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(config, default=lambda value: value.tolist()))
    return {key: value for key, value in plain.items() if value is not None or key not in _OPTIONAL}


def network_config(network: nn.Module) -> dict[str, Any]:
    """Return the class of `network` and, where it is one of diffusers' or `storable`, what makes it again."""
    config: dict[str, Any] | None = None
    if is_diffusers(network):
        saved = json.loads(cast(Any, network).to_json_string())
        config = {key: value for key, value in saved.items() if key != "_name_or_path"}  # a path of this machine
    elif stored_networks.NETWORKS.get(type(network).__name__) is type(network):
        config = dict(cast(Any, network).settings)
    return {"class": type(network).__name__, "config": config}


def schedule_config(schedule: NoiseSchedule) -> dict[str, Any]:
    """Return the config of a diffusers scheduler that `schedule` is, or alpha-bar itself of any other of DDPM's."""
    if type(schedule) is VariancePreserving:
        names = ("prediction_type", "sampler_settings", "original_steps", "boundary_scaling", "between")
        return {"alphas_cumprod": schedule.alphas_cumprod.tolist(), **{name: getattr(schedule, name) for name in names}}
    if isinstance(schedule, DiffusersSchedule):
        assert schedule.config is not None
        return schedule.config
    return scheduler_config(schedule)


def build(config: dict[str, Any], network: nn.Module | None = None) -> Denoiser:
    """Return the denoiser that `denoiser_config` described, with fresh weights.

    Args:
        config: what `denoiser_config` returned.
        network: the network itself, needed where it is neither one of diffusers' nor `storable`.

    Raises:
        ValueError: the network cannot be made from the config, or something is missing from it.
    """
    found = parts(config, network, None, "the dictionary")
    return Denoiser(*found[:4], null_condition=found.null_condition)


def is_diffusers(network: nn.Module) -> bool:
    """Return whether `network` is a model of diffusers' kind, its own or ours: its config tells how to make it."""
    import diffusers

    cls = type(network)
    known = stored_networks.NETWORKS.get(cls.__name__) or getattr(diffusers, cls.__name__, None)
    return issubclass(cls, diffusers.ModelMixin) and known is cls


def parts(config: dict[str, Any], network: nn.Module | None, schedule: NoiseSchedule | None, source: str) -> Parts:
    """Return the parts that `config` describes; `network` and `schedule` stand in for its own; errors name `source`."""
    if not isinstance(config, dict) or not all(isinstance(config.get(key) or {}, dict) for key in _OBJECTS):
        raise ValueError(f"{source} holds a config that is damaged: expected an object with {', '.join(_OBJECTS)}.")
    described = config.get("network") or {}
    if network is None and described.get("config") is None:
        raise ValueError(
            f"{source} does not tell how to make its network ({described.get('class', 'class unknown')}): "
            "give the network that takes the weights as `network=...`."
        )
    stored: dict[str, Any] = config.get("noise_schedule") or {}
    if schedule is None and not stored:
        raise ValueError(f"{source} has no noise schedule: give one as `noise_schedule=...` (a DiffusersSchedule).")
    try:
        if network is None:
            cls, settings = network_class(described["class"], source), described["config"]
            network = cls.from_config(settings) if hasattr(cls, "from_config") else cls(**settings)
        if schedule is None:
            schedule = VariancePreserving(**stored) if "alphas_cumprod" in stored else read_schedule(stored)
        codec = Normalizer(**config["codec"]) if config.get("codec") else None
    except (ValueError, ImportError):
        raise
    except Exception as error:  # what diffusers' networks raise on settings that do not fit has no common base
        raise ValueError(f"{source} holds a config that is damaged, or of another version: {error}.") from error
    shape = _shape(config.get("sample_shape"), source)
    return Parts(network, schedule, codec, shape, config.get("null_condition"), latent=bool(config.get("latent")))


def _shape(stored: Any, source: str) -> tuple[int, ...] | None:
    if not stored:
        return None
    if not isinstance(stored, list) or not all(type(side) is int and side > 0 for side in stored):
        raise ValueError(f"{source} holds the sample_shape {str(stored)[:80]}: expected integers above 0.")
    return tuple(stored)


def network_class(name: str, source: object) -> Any:
    """Return the network class called `name`: one of diffusers', or a `storable` one.

    Raises:
        ValueError: there is no noise predictor of that name.
    """
    import diffusers

    cls: Any = (
        stored_networks.NETWORKS.get(name) or getattr(diffusers, name, None) or stored_networks.find_network(name)
    )
    if inspect.isclass(cls) and issubclass(cls, nn.Module):
        parameters = inspect.signature(cls.forward).parameters
        own = stored_networks.NETWORKS.get(name) is cls and len(parameters) > 2  # self, x_t, t
        if own or (issubclass(cls, diffusers.ModelMixin) and "timestep" in parameters):
            return cls
    raise ValueError(
        f"{source} names the class '{name}', which is no noise predictor of diffusers and no registered one: expected "
        "one like UNet2DModel; register a class of your own with runtime.stored_networks.storable before, or use "
        "Denoiser(network=..., noise_schedule=...)."
    )
