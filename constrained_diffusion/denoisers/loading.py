"""Pretrained denoisers: from the zoo, a diffusers folder or hub id, a checkpoint of ours, or a safetensors file.

Nothing is unpickled: checkpoints are read with `weights_only=True`, and the only classes that a config may name are
diffusers' own networks. Weights are taken strictly: a missing, left-over or misshapen tensor is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from constrained_diffusion.denoisers import single_file
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.autoencoder import Autoencoder, read
from constrained_diffusion.denoisers.config import Parts, build, denoiser_config, parts
from constrained_diffusion.denoisers.hub import download
from constrained_diffusion.denoisers.lora_files import LORA_NAME, load_lora
from constrained_diffusion.denoisers.origin import Origin
from constrained_diffusion.denoisers.packed import is_packed
from constrained_diffusion.denoisers.pipelines import open_folder, read_network, read_text
from constrained_diffusion.denoisers.prompts import TextEncoders, constants, is_told_guidance
from constrained_diffusion.denoisers.schedule import is_flow, read_schedule
from constrained_diffusion.denoisers.shapes import shape_from_config
from constrained_diffusion.denoisers.strictly import foreign
from constrained_diffusion.diffusion.codec import Codec
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.runtime import assets, untrusted

__all__ = ["PretrainedDenoiser", "build", "denoiser_config", "find", "load"]

CONFIG_NAME = "constrained_diffusion.json"  #: what diffusers' own files do not hold: units, shape, foreign schedules
WEIGHTS_NAME = "model.safetensors"  #: the weights of an exported network that is not diffusers'
TRAINED, EMA = "networks.denoiser.network.", "networks.ema."  #: what names in a fit's checkpoint begin with
STATE_DICTS = (".pt", ".pth", ".bin")  #: what torch.save writes state dicts to
METADATA_KEY = "constrained_diffusion"  #: the config in a safetensors file's metadata

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class PretrainedDenoiser(Denoiser):
    """A denoiser with the weights found at `source`; its network is in evaluation mode.

    Of a pipeline it takes the sampler's settings, the autoencoder as its codec, and the text encoders.

    Args:
        source: in this order, a zoo name; a path: a diffusers pipeline folder, a bare diffusers model folder, a folder
            written by `export`, a `.ckpt` of ours (its EMA weights) or of yours, a `.safetensors` file, a state dict
            (`.pt`, `.pth`, `.bin`); or a hub id `owner/name`.
        guidance_scale: of classifier-free guidance in sampling; 1 is the condition alone, at half the cost. A network
            that guidance was distilled into (FLUX.1-dev, latent consistency models) is told it instead.
        negative_prompt: what guidance leads away from, where the model takes prompts. Empty, it is what the pipeline
            itself takes without one: the embedding of the empty prompt, or zeros (SDXL base).
        variant: of the weights' files, for example "fp16"; they are computed with in single precision.
        codec: in place of the source's own: units, or the autoencoder. Without either: images in [0, 1].
        network: for weights whose network is not diffusers': a module of the same class, which takes the weights.
        noise_schedule: in place of the source's own; needed where it has none.
        sample_shape: in place of the source's own.
        null_condition: in place of the source's own.
        adapters: LoRA adapters that the model is to have, a file or a folder of diffusers' kind (see `load_lora`).
        prefix: what names of the network's tensors begin with in a checkpoint or state dict of yours, as "model.".
        config: the folder with the configs and tokenizers of the pipeline that a single file in the original layout
            (of Civitai, ComfyUI, ..) holds the weights of; by default the folder beside it that has its name.

    Attributes:
        text: the text encoders, None for a model without prompts.
        origin: the pipeline, None where the source is none; an export has all its parts.
        folder: where the source's files lie if it is a folder and nothing of it was replaced, else None.

    Raises:
        FileNotFoundError: `source` is no zoo name and no path, and cannot be had from the hub.
        ImportError: transformers, which a pipeline's text encoders need, is missing.
        ValueError: the source holds something else, is truncated or from another model or not supported, lacks its text
            encoders, or cannot be guided.
    """

    def __init__(
        self,
        source: str,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        variant: str | None = None,
        codec: Codec | None = None,
        network: nn.Module | None = None,
        noise_schedule: NoiseSchedule | None = None,
        sample_shape: tuple[int, ...] | None = None,
        null_condition: dict[str, Any] | None = None,
        adapters: str | None = None,
        prefix: str | None = None,
        config: str | None = None,
    ) -> None:
        path = find(source, variant)
        found = load(path, network, noise_schedule, variant, prefix, sample_shape, config)
        super().__init__(
            found.network.eval(),
            found.noise_schedule,
            codec or found.codec,
            sample_shape or found.sample_shape,
            1.0,
            null_condition or found.null_condition,
        )
        if found.origin is not None:
            self.origin = Origin(found.origin, variant, noise_schedule is None, codec is None)
        self.pipeline_class = _json((found.origin or path) / "model_index.json").get("_class_name")
        if adapters is not None:
            load_lora(self.network, adapters)
        self._listen(found, guidance_scale, negative_prompt)
        replaced = any(part is not None for part in (codec, noise_schedule, sample_shape, adapters))
        self.folder: Path | None = path if path.is_dir() and not replaced else None

    def _listen(self, found: Parts, scale: float, negative_prompt: str) -> None:
        """Take the text encoders, and guidance, or what is told of it where it was distilled."""
        pixels, self.text = self.data_shape, None  # a foreign autoencoder refuses the first
        if found.text is not None and found.family is not None:
            constant = constants(self.network, found.family, found.text, pixels, scale)
            self.text = TextEncoders(found.text, found.family, constant, negative_prompt)
        elif negative_prompt:
            raise ValueError(
                f"negative_prompt is '{negative_prompt[:80]}', but the model takes no prompts: leave it out, or give "
                "a text-to-image pipeline with its text encoders."
            )
        self.guidance_scale = scale
        self.check_guidance()
        self._settings = (scale, negative_prompt)
        if is_told_guidance(self.network):
            self.guidance_scale = 1.0

    def check_guidance(self) -> None:
        """Raise ValueError where the guidance scale is out of range, or the model cannot be guided."""
        super().check_guidance()
        if self.guidance_scale != 1 and is_packed(self.network) and not is_told_guidance(self.network):
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}, but this FLUX was distilled without guidance "
                "(guidance_embeds is false): leave guidance_scale at 1, or take a model like FLUX.1-dev."
            )

    @property
    def guidance_settings(self) -> tuple[Any, ...]:
        """What samples depend on besides network, schedule, codec and condition."""
        return self._settings

    @property
    def has_prompts(self) -> bool:
        """Whether it takes prompts, by the text encoders of its pipeline."""
        return self.text is not None

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return what the network is told of `prompts`, one row each, each encoded once and on its own.

        Raises:
            TypeError: the model takes no prompts.
            ValueError: there is no prompt, or a string in place of a list.
        """
        return self.text.encode(prompts, self._device) if self.text else super().encode(prompts)

    def null(self, rows: int, device: torch.device) -> dict[str, Tensor]:
        """Return the condition of the negative prompt for `rows` samples; without prompts, the empty one."""
        if self.text is None or self.null_condition:
            return super().null(rows, device)
        told = self.text.null(device)
        return {name: row.expand(rows, *row.shape[1:]) for name, row in told.items()}

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device


def find(source: str, variant: str | None = None) -> Path:
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
    if _HUB_ID.fullmatch(source) and path.suffix not in (".ckpt", ".safetensors", *STATE_DICTS):
        return download(source, variant)
    raise FileNotFoundError(
        f"no pretrained denoiser at '{source}': expected a zoo name ({', '.join(assets.available()) or 'none'}), a "
        "diffusers folder, a .ckpt or .safetensors file, or a hub id owner/name."
    )


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
        raise ValueError(
            f"'{path}' holds LoRA adapters, not whole weights: give the model that they belong to as the source, and "
            "this folder as `adapters`."
        )
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
    found = parts(config, network, schedule, f"'{path}'")
    if found.codec is None and folder.autoencoder is not None:
        found = found._replace(codec=Autoencoder(network=read(folder.autoencoder, variant)))
    if folder.family is not None:
        found = found._replace(text=read_text(folder, network, variant), family=folder.family)
    if found.null_condition is None:
        found = found._replace(null_condition=_no_class(network))
    return found._replace(origin=path if folder.contents else None)


def read_schedule_for(
    network: nn.Module, scheduler: dict[str, Any], sample_shape: tuple[int, ...] | None = None
) -> NoiseSchedule:
    """Return the schedule of a scheduler's config for `network`: what it is told of time, and its tokens."""
    config: Any = getattr(network, "config", {})
    scale = 0.001 if is_packed(network) else float(config.get("timestep_scale") or 1.0)
    patch = 2 if is_packed(network) else int(config.get("patch_size") or 1)
    shape = sample_shape or (shape_from_config(network) if is_flow(scheduler) else ())
    schedule = read_schedule(scheduler, math.prod(shape[1:]) // patch ** len(shape[1:]), scale)
    if is_packed(network):  # whose pipeline gives the scheduler its grid
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
    twins = (path.with_suffix(".json"), path.parent / CONFIG_NAME)
    own = untrusted.parse_json(metadata.get(METADATA_KEY, "null"), path)
    config = own or next((_json(twin) for twin in twins if twin.is_file()), {})
    if not config and network is None:
        single_file.refuse_without_config(path, weights)
    with untrusted.no_larger_than(path):
        loaded = parts(config, network, schedule, f"'{path}'")
    _fill(loaded.network, _inside(weights, prefix or "", path), path)
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
