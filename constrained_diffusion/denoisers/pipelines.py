"""Folders of diffusers: which are taken, told from their configs alone, and their weights.

No code of a folder runs: it may name classes of diffusers and transformers only, pickles are read as weights, and no
config makes a larger network than its files can fill.
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import nn

from constrained_diffusion.denoisers.autoencoder import CLASSES as _AUTOENCODERS
from constrained_diffusion.denoisers.config import network_class
from constrained_diffusion.denoisers.families import Family, family_of
from constrained_diffusion.denoisers.strictly import load_strictly, reading
from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.distribution import needs_extra

COMPONENTS = ("unet", "transformer")
AUTOENCODERS = ("vae", "vqvae", "movq")  #: folders that a pipeline's autoencoder may be in
LIBRARIES = {"diffusers", "transformers"}  #: whose classes a pipeline may name; loading one imports its library
NEVER_LOADED = {"safety_checker", "feature_extractor", "image_encoder"}
_OFF = {"requires_safety_checker", "add_watermarker"}
_REMAPPED = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}


class Folder(NamedTuple):
    """What a folder of diffusers is, told from its configs."""

    path: Path
    contents: dict[str, Any]  #: of a pipeline's model_index.json; empty for a bare network
    network: Path  #: the folder of the network
    autoencoder: Path | None
    family: Family | None  #: None for a model without prompts


def open_folder(folder: Path) -> Folder:
    """Return what lies in `folder`; no weights are read.

    Raises:
        ValueError: it is no folder of diffusers, brings code, or is of a kind that is not supported.
    """
    index = _json(folder / "model_index.json")
    if not index:
        _refuse_part(folder, _json(folder / "config.json"))
    inside = next((name for name in COMPONENTS if (folder / name / "config.json").is_file()), None)
    if not index and not (folder / "config.json").is_file() and inside is None:
        raise ValueError(
            f"'{folder}' is no diffusers folder: expected a model_index.json (a pipeline) or config.json (a network)."
        )
    if code := next((file for place in ("*.py", "*/*.py") for file in folder.glob(place)), None):
        raise ValueError(
            f"'{folder}' brings code, '{code.name}', which some versions of diffusers would run: expected weights and "
            "configs alone; take the file out."
        )
    listed = {name: part for name, part in index.items() if isinstance(part, list) and any(part)}
    component = next((name for name in COMPONENTS if name in listed), None) if index else inside
    if index and component is None:
        raise ValueError(f"the pipeline in '{folder}' has no noise predictor: expected a {' or '.join(COMPONENTS)}.")
    foreign = sorted({str(part[0]) for name, part in listed.items() if name not in NEVER_LOADED} - LIBRARIES)
    if foreign:
        raise ValueError(
            f"the pipeline in '{folder}' names a part of '{foreign[0][:80]}', whose code is not trusted: expected "
            f"parts of {' and '.join(sorted(LIBRARIES))} alone."
        )
    # Old pipelines on the hub keep their only network in the top folder.
    network = folder / component if component and (folder / component).is_dir() else folder
    config = _json(network / "config.json")
    family = family_of(str(folder), index, _class_name(config)) if index and config else None
    _check_channels(config, network)
    encoder = next((folder / name for name in AUTOENCODERS if (folder / name / "config.json").is_file()), None)
    missing = next((name for name in AUTOENCODERS if name in listed and not (folder / name).is_dir()), None)
    if missing is not None:
        raise ValueError(f"the pipeline in '{folder}' lacks its folder {missing}: expected all parts; fetch it again.")
    return Folder(folder, index, network, encoder, family)


def _class_name(config: dict[str, Any]) -> str:
    name = str(config.get("_class_name", config.get("class")))
    return _REMAPPED.get(str(config.get("norm_type")), name) if name == "Transformer2DModel" else name


def read_network(folder: Path, variant: str | None = None) -> nn.Module:
    """Return the network of diffusers in `folder`, every tensor filled.

    Raises:
        ValueError: it is no noise predictor, or its weights are missing, truncated or from another model.
    """
    from diffusers.utils.import_utils import is_accelerate_available

    config = _json(folder / "config.json")
    cls = network_class(str(config.get("_class_name", config.get("class"))), f"'{folder}/config.json'")
    fast = is_accelerate_available()
    loaded: nn.Module = load_strictly(cls, folder, variant, low_cpu_mem_usage=fast)
    return loaded


def _check_channels(config: dict[str, Any], folder: Path) -> None:
    """Raise ValueError where the network in `folder` returns something else than what it takes."""
    channels = config.get("in_channels"), config.get("out_channels")
    if None not in channels and channels[1] not in (channels[0], 2 * int(channels[0] or 0)):
        raise ValueError(
            f"the network in '{folder}' takes {channels[0]} channels and returns {channels[1]}: expected as many, "
            "or twice as many where the variance is learnt (inpainting and masks are not supported); wrap it in a "
            "module that returns the noise alone."
        )


def _refuse_part(folder: Path, config: dict[str, Any]) -> None:
    """Raise ValueError where `folder`, with this config, is a part of a pipeline beside the network."""
    inside = folder.name in _json(folder.parent / "model_index.json") and folder.name not in COMPONENTS
    kind = str(config.get("_class_name") or next(iter(config.get("architectures") or []), ""))
    if inside or "architectures" in config or kind in _AUTOENCODERS:
        place = f"'{folder.parent}'" if inside else "the folder above it"
        raise ValueError(
            f"'{folder}' is a part of a pipeline{f', its {kind[:80]},' * bool(kind)} but not the network that predicts "
            f"noise: expected the whole pipeline; give its folder, {place}."
        )


def read_text(folder: Folder, network: nn.Module, variant: str | None = None) -> Any:
    """Return the pipeline of diffusers with the tokenizers and text encoders of `folder` alone.

    Raises:
        ImportError: transformers is missing.
        ValueError: a part is missing, or damaged.
    """
    encoders = {name: read_part(folder, name, variant) for name in listed_encoders(folder)}
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders]
    return text_pipeline(folder, {**encoders, **{name: read_part(folder, name) for name in tokenizers}}, network)


def listed_encoders(folder: Folder) -> list[str]:
    """Return the names of the text encoders that the pipeline has."""
    return [name for name in (folder.family.encoders if folder.family else ()) if any(folder.contents.get(name) or [])]


def read_part(folder: Folder, name: str, variant: str | None = None) -> Any:
    """Return a text encoder, in single precision, or a tokenizer of a pipeline.

    Raises:
        ImportError: transformers is missing.
        ValueError: the part is missing, or damaged.
    """
    with needs_extra("text-to-image", "text-to-image models need transformers"):
        import transformers

    path, cls = folder.path / name, getattr(transformers, str(folder.contents[name][1]), None)
    if cls is None or not path.is_dir():
        raise ValueError(
            f"the pipeline in '{folder.path}' has no folder {name}, without which prompts cannot be encoded; fetch the "
            "whole pipeline."
        )
    if name.startswith("tokenizer"):
        return reading(path, partial(cls.from_pretrained, str(path), local_files_only=True))
    return load_strictly(cls, path, variant).float()


def text_pipeline(folder: Folder, parts: dict[str, Any], network: nn.Module) -> Any:
    """Return the pipeline of diffusers with `parts`, its text encoders and tokenizers, alone; `network` stays out."""
    import diffusers

    cls: Any = getattr(diffusers, class_of(folder))
    arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
    given: dict[str, Any] = {one.name: None for one in arguments if one.default is one.empty}
    given |= {one.name: False for one in arguments if one.name in _OFF}
    plain = {one.name for one in arguments} & folder.contents.keys() - given.keys()
    given |= {key: folder.contents[key] for key in plain if not isinstance(folder.contents[key], list)}
    made = cls(**{**given, **parts})
    component = "unet" if hasattr(made, "unet") else "transformer"
    setattr(made, component, SimpleNamespace(config=getattr(network, "config", None)))  # for the width of the text
    for encoder in (part for part in parts.values() if isinstance(part, nn.Module)):
        encoder.requires_grad_(False).eval()
    return made


def class_of(folder: Folder) -> str:
    """Return the pipeline class of diffusers whose `encode_prompt` is used."""
    assert folder.family is not None
    named = str(folder.contents.get("_class_name"))
    return named if named in folder.family.pipelines else folder.family.pipelines[0]


def _json(path: Path) -> dict[str, Any]:
    return untrusted.read_json(path) if path.is_file() else {}
