"""Reading what a source holds: folders of diffusers, exports and checkpoints of ours, files of other trainers.

Nothing is unpickled: checkpoints are read with `weights_only=True`, and the only classes that a config may name are
diffusers' own networks. Weights are taken strictly: a missing, left-over or misshapen tensor is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from constrained_diffusion.denoisers import single_file
from constrained_diffusion.denoisers.autoencoder import Autoencoder, read
from constrained_diffusion.denoisers.config import Parts, parts
from constrained_diffusion.denoisers.lora_files import LORA_NAME, are_adapters, not_weights
from constrained_diffusion.denoisers.packed import is_packed
from constrained_diffusion.denoisers.pipelines import open_folder, read_network, read_text
from constrained_diffusion.denoisers.schedule import is_flow, read_schedule
from constrained_diffusion.denoisers.shapes import shape_from_config
from constrained_diffusion.denoisers.strictly import foreign
from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.runtime import untrusted

CONFIG_NAME = "constrained_diffusion.json"  #: what diffusers' own files do not hold: units, shape, foreign schedules
WEIGHTS_NAME = "model.safetensors"  #: the weights of an exported network that is not diffusers'
TRAINED, EMA = "networks.denoiser.network.", "networks.ema."  #: what names in a fit's checkpoint begin with
STATE_DICTS = (".pt", ".pth", ".bin")  #: what torch.save writes state dicts to
METADATA_KEY = "constrained_diffusion"  #: the config in a safetensors file's metadata


def load(
    path: Path,
    network: nn.Module | None = None,
    noise_schedule: NoiseSchedule | None = None,
    variant: str | None = None,
    prefix: str | None = None,
    sample_shape: tuple[int, ...] | None = None,
    config: str | Path | None = None,
) -> Parts:
    """Read the denoiser at `path`, a folder or a file; see `PretrainedDenoiser`.

    Raises:
        ValueError: it is something else, truncated, or from another model.
    """
    if (path / LORA_NAME).is_file():
        raise not_weights(path)
    beside = Path(config).expanduser() if config else path.with_suffix("")
    if path.is_dir() and (path / WEIGHTS_NAME).is_file() and (path / CONFIG_NAME).is_file():
        return _from_safetensors(path / WEIGHTS_NAME, network, noise_schedule, prefix)
    if path.is_dir():
        return _from_diffusers(path, network, noise_schedule, variant, sample_shape)
    if path.suffix == ".safetensors" and network is None and (config or (beside / "model_index.json").is_file()):
        return _from_single_file(path, beside, noise_schedule, sample_shape)
    if path.suffix == ".ckpt":
        return _from_checkpoint(path, network, noise_schedule, prefix)
    if path.suffix == ".safetensors":
        return _from_safetensors(path, network, noise_schedule, prefix)
    if path.suffix in STATE_DICTS:
        return _from_state_dict(path, network, noise_schedule, prefix)
    raise ValueError(
        f"expected a folder, a .ckpt, .safetensors, {', '.join(STATE_DICTS)} file, got '{path}'; convert it to "
        "safetensors."
    )


def _from_single_file(
    path: Path, config: Path, schedule: NoiseSchedule | None, sample_shape: tuple[int, ...] | None
) -> Parts:
    found = single_file.read(path, config)
    scheduler = _json(config / "scheduler" / "scheduler_config.json")
    if schedule is None and scheduler:
        schedule = read_schedule_for(found.network, scheduler, sample_shape)
    loaded = parts({}, found.network, schedule, f"'{path}'")
    loaded = loaded._replace(pipeline_class=_json(config / "model_index.json").get("_class_name"))
    return loaded._replace(codec=Autoencoder(network=found.autoencoder), text=found.text, family=found.family)


def _from_diffusers(
    path: Path,
    network: nn.Module | None,
    schedule: NoiseSchedule | None,
    variant: str | None,
    sample_shape: tuple[int, ...] | None,
) -> Parts:
    if network is not None:
        raise ValueError(f"'{path}' names its own network: leave `network` out, or give a .safetensors file.")
    folder, config = open_folder(path), _json(path / CONFIG_NAME)
    network = read_network(folder.network, variant)
    scheduler = _json(path / "scheduler" / "scheduler_config.json") or _json(path / "scheduler_config.json")
    if scheduler and schedule is None and "noise_schedule" not in config:
        schedule = read_schedule_for(network, scheduler, sample_shape)
        if "sampler_settings" in config:  # of an export of ours
            schedule.sampler_settings = dict(config["sampler_settings"])
    found = parts(config, network, schedule, f"'{path}'")
    if found.codec is None and folder.autoencoder is not None:
        found = found._replace(codec=Autoencoder(network=read(folder.autoencoder, variant)))
    if folder.family is not None:
        found = found._replace(text=read_text(folder, network, variant), family=folder.family, latent=True)
    if found.null_condition is None:
        found = found._replace(null_condition=_no_class(network))
    if not folder.contents:
        return found
    return found._replace(origin=path, pipeline_class=folder.contents.get("_class_name"))


def read_schedule_for(
    network: nn.Module, scheduler: dict[str, Any], sample_shape: tuple[int, ...] | None = None
) -> NoiseSchedule:
    """Return the schedule of a scheduler's config for `network`: with the scale of its time, and its tokens."""
    config: Any = getattr(network, "config", {})
    scale = 0.001 if is_packed(network) else float(config.get("timestep_scale") or 1.0)
    patch = 2 if is_packed(network) else int(config.get("patch_size") or 1)
    shape = sample_shape or (shape_from_config(network) if is_flow(scheduler) else ())
    schedule = read_schedule(scheduler, math.prod(shape[1:]) // patch ** len(shape[1:]), scale)
    if is_packed(network) and isinstance(schedule, FlowMatching):  # whose pipeline gives the scheduler its grid
        schedule.sampler_settings["spacing"] = "linear"
    return schedule


def _no_class(network: nn.Module) -> dict[str, Any] | None:
    """Return the label that DiT takes for none: the one after its classes."""
    config: Any = getattr(network, "config", None) or {}
    named = type(network).__name__ == "DiTTransformer2DModel"
    return {"class_labels": int(config["num_embeds_ada_norm"])} if named else None


def check_layout(state: Mapping[str, Any]) -> None:
    """Raise ValueError where the state of a fit's checkpoint has the names of an earlier version."""
    if any(name.startswith("ema.") for name in state):
        raise ValueError(
            "the checkpoint was written by an earlier version of this package, which named its tensors otherwise; fit "
            "again, or go on from the weights that its run exported (export/), which are read as before."
        )


def _from_checkpoint(
    path: Path, network: nn.Module | None, schedule: NoiseSchedule | None, prefix: str | None = None
) -> Parts:
    try:
        checkpoint = untrusted.read_checkpoint(path, "state_dict")
    except ValueError as error:
        raise foreign(path, error) from error
    state = checkpoint["state_dict"]
    if prefix is None:
        check_layout(state)
        prefix = EMA if any(key.startswith(EMA) for key in state) else TRAINED
    weights = _inside(state, prefix, path)
    if any(".lora_A." in key for key in weights):
        raise ValueError(f"'{path}' holds LoRA adapters, not whole weights: give the folder that the fit exported.")
    with untrusted.no_larger_than(path):
        loaded = parts(checkpoint.get("denoiser") or {}, network, schedule, f"'{path}'")
    _fill(loaded.network, weights, path)
    return loaded


def _from_state_dict(
    path: Path, network: nn.Module | None, schedule: NoiseSchedule | None, prefix: str | None
) -> Parts:
    try:
        content = untrusted.read_checkpoint(path)
    except ValueError as error:
        raise foreign(path, error) from error
    state = content.get("state_dict", content)
    loaded = parts({}, network, schedule, f"'{path}'")
    _fill(loaded.network, _inside(state, prefix or "", path), path)
    return loaded


def _from_safetensors(
    path: Path, network: nn.Module | None, schedule: NoiseSchedule | None, prefix: str | None = None
) -> Parts:
    try:
        weights, metadata = untrusted.read_tensors(path)
    except ValueError as error:
        raise foreign(path, error) from error
    if are_adapters(weights):
        raise not_weights(path)
    twins = (path.with_suffix(".json"), path.parent / CONFIG_NAME)
    own = untrusted.parse_json(metadata.get(METADATA_KEY, "null"), path)
    config = own or next((_json(twin) for twin in twins if twin.is_file()), {})
    if not config and network is None:
        single_file.refuse_without_config(path, weights)
    with untrusted.no_larger_than(path):
        loaded = parts(config, network, schedule, f"'{path}'")
    _fill(loaded.network, _inside(weights, prefix or "", path), path)
    if loaded.latent and (path.parent / "vae" / "config.json").is_file():  # an export of ours
        loaded = loaded._replace(codec=Autoencoder(network=read(path.parent / "vae")))
    return loaded


def _inside(state: Mapping[str, Any], prefix: str, path: Path) -> dict[str, Any]:
    """Return the tensors whose names begin with `prefix`, without it.

    Raises:
        ValueError: there are none.
    """
    found = {key.removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}
    if not found:
        starts = ", ".join(map(repr, sorted({str(key).partition(".")[0] + "." for key in state})[:5]))
        asked = "no denoiser of ours" if prefix in (EMA, TRAINED) else f"nothing under '{prefix}'"
        raise ValueError(
            f"'{path}' holds {asked}, but tensors under {starts or 'no name'}: give what "
            "the names of its network begin with as `prefix`, with the network and the noise schedule."
        )
    return found


def _fill(network: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    own = network.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    misshapen = [key for key in own if key in weights and own[key].shape != getattr(weights[key], "shape", None)]
    if missing or extra or misshapen:
        first = (missing + extra + misshapen)[0]
        raise foreign(
            source,
            f"of the {len(own)} tensors of a {type(network).__name__}, {len(missing)} are missing and "
            f"{len(misshapen)} have another shape; {len(extra)} are left over (the first: {first})",
        )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # sparse or quantised tensors
        raise foreign(source, error) from error


def _json(path: Path) -> dict[str, Any]:
    return untrusted.read_json(path) if path.is_file() else {}
