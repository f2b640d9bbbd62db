"""Pretrained denoisers: from the zoo, a diffusers folder or hub id, a checkpoint of ours, or a safetensors file.

Nothing is unpickled: checkpoints are read with `weights_only=True`, and the only classes that a config may name are
diffusers' own networks. Weights are taken strictly: a missing, left-over or misshapen tensor is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.autoencoder import Autoencoder
from constrained_diffusion.denoisers.config import Parts, build, denoiser_config, network_class, parts
from constrained_diffusion.denoisers.lora_files import LORA_NAME, load_lora
from constrained_diffusion.denoisers.schedule import read_schedule
from constrained_diffusion.diffusion.codec import Codec
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.runtime import assets, untrusted

__all__ = ["PretrainedDenoiser", "build", "denoiser_config", "find", "load"]

CONFIG_NAME = "constrained_diffusion.json"  #: what diffusers' own files do not hold: units, shape, foreign schedules
WEIGHTS_NAME = "model.safetensors"  #: the weights of an exported network that is not diffusers'
TRAINED, EMA = "networks.denoiser.network.", "networks.ema."  #: what names in a fit's checkpoint begin with
METADATA_KEY = "constrained_diffusion"  #: the config in a safetensors file's metadata

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMPONENTS = ("unet", "transformer")
AUTOENCODERS = ("vae", "vqvae", "movq")  #: folders that a pipeline's autoencoder may be in
_PATTERNS = ["{}diffusion_pytorch_model.{}", "{}diffusion_pytorch_model-0*.{}"]  # whole or in shards, no half precision


class PretrainedDenoiser(Denoiser):
    """A denoiser with the weights found at `source`; its network is in evaluation mode.

    Args:
        source: in this order, a zoo name; a path: a diffusers pipeline folder, a bare diffusers model folder, a folder
            written by `export`, a `.ckpt` of ours (its EMA weights), a `.safetensors` file; or a hub id `owner/name`.
        codec: in place of the source's own: units, or the autoencoder. Without either: images in [0, 1].
        network: for weights whose network is not diffusers': a module of the same class, which takes the weights.
        noise_schedule: in place of the source's own; needed where it has none.
        sample_shape: in place of the source's own.
        guidance_scale: of classifier-free guidance in sampling; see `Denoiser`.
        null_condition: in place of the source's own.
        adapters: LoRA adapters that the model is to have, a file or a folder of diffusers' kind (see `load_lora`).

    Attributes:
        folder: where the source's files lie if it is a folder and nothing of it was replaced, else None.

    Raises:
        FileNotFoundError: `source` is no zoo name and no path, and cannot be had from the hub.
        ValueError: the source holds something else, is truncated, is from another model, or matches noise to data by a
            flow.
    """

    def __init__(
        self,
        source: str,
        codec: Codec | None = None,
        network: nn.Module | None = None,
        noise_schedule: NoiseSchedule | None = None,
        sample_shape: tuple[int, ...] | None = None,
        guidance_scale: float = 1.0,
        null_condition: dict[str, Any] | None = None,
        adapters: str | None = None,
    ) -> None:
        path = find(source)
        found = load(path, network, noise_schedule)
        super().__init__(
            found.network.eval(),
            noise_schedule or found.noise_schedule,
            codec or found.codec,
            sample_shape or found.sample_shape,
            guidance_scale,
            null_condition or found.null_condition,
        )
        self.pipeline_class = _json(path / "model_index.json").get("_class_name")
        if adapters is not None:
            load_lora(self.network, adapters)
        replaced = any(part is not None for part in (codec, noise_schedule, sample_shape, adapters))
        self.folder: Path | None = path if path.is_dir() and not replaced else None


def find(source: str) -> Path:
    """Return the file or folder that `source` stands for; a hub id is downloaded, or found in the hub's cache.

    Raises:
        FileNotFoundError: there is none.
    """
    source = str(source)
    if source in assets.available():
        return assets.path(source)
    path = Path(source).expanduser()
    if path.exists():
        return path
    if _HUB_ID.fullmatch(source) and path.suffix not in (".ckpt", ".safetensors"):
        return _download(source)
    raise FileNotFoundError(
        f"no pretrained denoiser at '{source}': expected a zoo name ({', '.join(assets.available()) or 'none'}), a "
        "diffusers folder, a .ckpt or .safetensors file, or a hub id owner/name."
    )


def load(path: Path, network: nn.Module | None = None, noise_schedule: NoiseSchedule | None = None) -> Parts:
    """Read the denoiser at `path`, a folder, a `.ckpt` or a `.safetensors` file; see `PretrainedDenoiser`.

    Raises:
        ValueError: it is something else, truncated, or from another model.
    """
    if (path / LORA_NAME).is_file():
        raise ValueError(
            f"'{path}' holds LoRA adapters, not whole weights: give the model that they belong to as the source, and "
            "this folder as `adapters`."
        )
    if path.is_dir() and (path / WEIGHTS_NAME).is_file() and (path / CONFIG_NAME).is_file():
        return _from_safetensors(path / WEIGHTS_NAME, network, noise_schedule)
    if path.is_dir():
        return _from_diffusers(path, network, noise_schedule)
    if path.suffix == ".ckpt":
        return _from_checkpoint(path, network, noise_schedule)
    if path.suffix == ".safetensors":
        return _from_safetensors(path, network, noise_schedule)
    raise ValueError(f"expected a folder, a .ckpt or a .safetensors file, got '{path}'; convert it to safetensors.")


def _from_diffusers(folder: Path, network: nn.Module | None, schedule: NoiseSchedule | None) -> Parts:
    if network is not None:
        raise ValueError(f"'{folder}' names its own network: leave `network` out, or give a .safetensors file.")
    index, config = _json(folder / "model_index.json"), _json(folder / CONFIG_NAME)
    inside = next((name for name in _COMPONENTS if (folder / name / "config.json").is_file()), None)
    if not index and not (folder / "config.json").is_file() and inside is None:
        raise ValueError(
            f"'{folder}' is no diffusers folder: expected a model_index.json (a pipeline) or config.json (a network)."
        )
    component = next((name for name in _COMPONENTS if isinstance(index.get(name), list) and any(index[name])), None)
    component = inside if component is None and not index else component
    if index and component is None:
        raise ValueError(f"the pipeline in '{folder}' has no noise predictor: expected a {' or '.join(_COMPONENTS)}.")
    scheduler = _json(folder / "scheduler" / "scheduler_config.json") or _json(folder / "scheduler_config.json")
    if scheduler and schedule is None and "noise_schedule" not in config:
        schedule = read_schedule(scheduler)
    # Old pipelines on the hub keep their only network in the top folder.
    part = folder / component if component and (folder / component).is_dir() else folder
    found = parts(config, _diffusers_network(part), schedule, f"'{folder}'")
    encoder = next((folder / name for name in AUTOENCODERS if (folder / name / "config.json").is_file()), None)
    return found if encoder is None or found.codec is not None else found._replace(codec=Autoencoder(str(encoder)))


def _diffusers_network(folder: Path) -> nn.Module:
    from diffusers.utils.import_utils import is_accelerate_available

    config = _json(folder / "config.json")
    cls = network_class(str(config.get("_class_name", config.get("class"))), f"'{folder}/config.json'")
    channels = config.get("in_channels"), config.get("out_channels")
    if None not in channels and channels[1] not in (channels[0], 2 * int(channels[0] or 0)):
        raise ValueError(
            f"the network in '{folder}' takes {channels[0]} channels and returns {channels[1]}: expected as many, "
            "or twice as many where the variance is learnt (masks are not supported); wrap it in a module that returns "
            "the noise alone."
        )
    fast = is_accelerate_available()
    try:
        for pickled in folder.glob("*.bin"):
            untrusted.check_archive(pickled)
        with untrusted.no_larger_than(folder):
            network, found = cls.from_pretrained(
                str(folder), output_loading_info=True, local_files_only=True, low_cpu_mem_usage=fast
            )
    except Exception as error:  # torch, safetensors and diffusers have many, without a common base
        raise _foreign(folder, error) from error
    if found["missing_keys"] or found["mismatched_keys"]:
        first = sorted(found["missing_keys"] or found["mismatched_keys"])[0]
        raise _foreign(folder, f"the {cls.__name__} of its config finds no fitting {first}")
    assembled: nn.Module = network
    return assembled


def check_layout(state: Mapping[str, Any]) -> None:
    """Raise ValueError where the state of a fit's checkpoint has the names of an earlier version."""
    if any(name.startswith("ema.") for name in state):
        raise ValueError(
            "the checkpoint was written by an earlier version of this package, which named its tensors otherwise; fit "
            "again, or go on from the weights that its run exported (export/), which are read as before."
        )


def _from_checkpoint(path: Path, network: nn.Module | None, schedule: NoiseSchedule | None) -> Parts:
    try:
        checkpoint = untrusted.read_checkpoint(path, "state_dict")
    except ValueError as error:
        raise _foreign(path, error) from error
    state = checkpoint["state_dict"]
    check_layout(state)
    prefix = EMA if any(key.startswith(EMA) for key in state) else TRAINED
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not weights:
        raise _foreign(path, "it holds no denoiser")
    if any(".lora_A." in key for key in weights):
        raise ValueError(f"'{path}' holds LoRA adapters, not whole weights: give the folder that the fit exported.")
    with untrusted.no_larger_than(path):
        loaded = parts(checkpoint.get("denoiser") or {}, network, schedule, f"'{path}'")
    _fill(loaded.network, weights, path)
    return loaded


def _from_safetensors(path: Path, network: nn.Module | None, schedule: NoiseSchedule | None) -> Parts:
    try:
        weights, metadata = untrusted.read_tensors(path)
    except ValueError as error:
        raise _foreign(path, error) from error
    twins = (path.with_suffix(".json"), path.parent / CONFIG_NAME)
    own = untrusted.parse_json(metadata.get(METADATA_KEY, "null"), path)
    config = own or next((_json(twin) for twin in twins if twin.is_file()), {})
    with untrusted.no_larger_than(path):
        loaded = parts(config, network, schedule, f"'{path}'")
    _fill(loaded.network, weights, path)
    return loaded


def _fill(network: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    own = network.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    misshapen = [key for key in own if key in weights and own[key].shape != getattr(weights[key], "shape", None)]
    if missing or extra or misshapen:
        first = (missing + extra + misshapen)[0]
        raise _foreign(
            source,
            f"of the {len(own)} tensors of a {type(network).__name__}, {len(missing)} are missing and "
            f"{len(misshapen)} have another shape; {len(extra)} are left over (the first: {first})",
        )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # sparse or quantised tensors
        raise _foreign(source, error) from error


def _foreign(source: Path, detail: object) -> ValueError:
    said = f"{type(detail).__name__}: {detail}" if isinstance(detail, Exception) else str(detail)
    return ValueError(
        f"the weights in '{source}' are truncated or from another model: {said.splitlines()[0][:300]}; give the whole "
        "file, with the network that it was made by."
    )


def _json(path: Path) -> dict[str, Any]:
    return untrusted.read_json(path) if path.is_file() else {}


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    places = ("", *(f"{name}/" for name in _COMPONENTS))
    configs = [f"{place}config.json" for place in places] + ["model_index.json", "*scheduler_config.json", CONFIG_NAME]
    indices = [f"{place}*.index.json" for place in places]
    try:
        for kind in ("safetensors", "bin"):
            weights = [pattern.format(place, kind) for place in places for pattern in _PATTERNS]
            folder = Path(snapshot_download(source, allow_patterns=[*configs, *indices, *weights]))
            if any(folder.rglob(f"diffusion_pytorch_model*.{kind}")):
                break
    except Exception as error:  # the hub's client and its transport have many exceptions, without a common base
        raise FileNotFoundError(
            f"'{source}' is no file or folder here, and could not be had from the hub ({type(error).__name__}): check "
            "the name and the connection, or give the path of a downloaded folder."
        ) from error
    return folder
