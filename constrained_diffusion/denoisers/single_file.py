"""Single files in the layout of the original repositories, with the configs of their pipeline in a folder.

Nothing is fetched: diffusers would look up the configs on the hub, and guess them by the names of the tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from constrained_diffusion.denoisers.autoencoder import read as read_autoencoder
from constrained_diffusion.denoisers.families import Family
from constrained_diffusion.denoisers.pipelines import (
    class_of,
    listed_encoders,
    open_folder,
    read_part,
    text_pipeline,
)
from constrained_diffusion.denoisers.strictly import foreign, reading
from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.distribution import needs_extra

_ORIGINAL = ("model.diffusion_model.", "double_blocks.", "joint_blocks.", "first_stage_model.")


class SingleFile(NamedTuple):
    """The parts of a pipeline whose weights lay in one file."""

    network: nn.Module
    autoencoder: nn.Module
    text: Any  #: the pipeline of diffusers with the text encoders alone
    family: Family


def read(path: Path, config: Path) -> SingleFile:
    """Return what `path`, a safetensors file, holds; parts that it lacks may have weights in the folder `config`.

    Raises:
        ImportError: transformers is missing.
        ValueError: the folder is not that of a supported pipeline, or the weights are missing or of another model.
    """
    if not (config / "model_index.json").is_file():
        raise ValueError(
            f"config='{config}' is no folder of a pipeline: expected the model_index.json, configs and tokenizers of "
            f"the pipeline that '{path.name}' is of."
        )
    folder = open_folder(config)
    if folder.family is None or folder.autoencoder is None:
        raise ValueError(
            f"config='{config}' is of a {folder.contents.get('_class_name')}, whose single files are not supported: "
            "expected a text-to-image pipeline with its autoencoder."
        )
    with needs_extra("text-to-image", "text-to-image models need transformers"):
        import transformers  # noqa: F401
    import diffusers

    cls: Any = getattr(diffusers, class_of(folder))
    given = {name: read_part(folder, name) for name in listed_encoders(folder) if _has_weights(config / name)}
    if _has_weights(folder.autoencoder):
        given[folder.autoencoder.name] = read_autoencoder(folder.autoencoder)

    def load() -> Any:
        with untrusted.no_larger_than(path):
            return cls.from_single_file(str(path), config=str(config), local_files_only=True, **given)

    pipeline = reading(path, load)
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    for name, part in parts.items():
        if isinstance(part, nn.Module) and (missing := [key for key, p in part.named_parameters() if p.is_meta]):
            raise foreign(path, f"the {type(part).__name__} of its config finds no {name}.{missing[0]}")
    network = parts[folder.network.name].float()
    told = {name: part for name, part in parts.items() if name.startswith(("text_encoder", "tokenizer"))}
    told = {name: part.float() if isinstance(part, nn.Module) else part for name, part in told.items()}
    text = text_pipeline(folder, told, network)
    return SingleFile(network, parts[folder.autoencoder.name].float(), text, folder.family)


def refuse_without_config(path: Path, names: Iterable[str]) -> None:
    """Raise ValueError where tensors of these names are in the original layout, which says nothing of its parts."""
    if any(name.startswith(_ORIGINAL) for name in names):
        raise ValueError(
            f"'{path}' is a single file in the original layout, which does not say what its parts are: put the configs "
            f"and tokenizers of its pipeline into the folder '{path.with_suffix('')}', or name theirs as `config`."
        )


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(f"*.{kind}")) for kind in ("safetensors", "bin"))
