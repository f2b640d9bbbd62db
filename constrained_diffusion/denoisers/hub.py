"""Pipelines and networks from the Hugging Face hub: configs first, weights once these are known to be supported."""

from __future__ import annotations

from pathlib import Path

from constrained_diffusion.denoisers.pipelines import Folder, listed_encoders, open_folder

_CONFIGS = ["*.json", "*.txt", "*.model"]  #: configs, indices of shards, and tokenizers


def download(source: str, variant: str | None = None) -> Path:
    """Return the folder that `source`, a hub id `owner/name`, was downloaded to, or lies in the hub's cache.

    Raises:
        FileNotFoundError: it cannot be had.
        ValueError: what is there is of a kind that is not supported; its weights are not fetched.
    """
    folder = _fetch(source, _CONFIGS)
    places = _places(open_folder(folder))
    for kind in ("safetensors", "bin"):
        _fetch(source, [*_CONFIGS, *(name for place in places for name in _weights(place, kind, variant))])
        if all(any((folder / place).glob(f"*.{kind}")) for place in places):
            break
    return folder


def _places(found: Folder) -> list[str]:
    """Return the folders whose weights are read, relative to the whole; "" is the top one."""
    inside = [found.network, *([found.autoencoder] if found.autoencoder else [])]
    names = [str(part.relative_to(found.path)) for part in inside]
    return ["" if name == "." else name for name in [*names, *listed_encoders(found)]]


def _weights(place: str, kind: str, variant: str | None) -> list[str]:
    """Return the patterns of the files of one part, whole or in shards, and of no other variant."""
    stems = ["model", "pytorch_model"] if place.startswith("text_encoder") else ["diffusion_pytorch_model"]
    middle = f".{variant}" if variant else ""
    top = f"{place}/" if place else ""
    return [f"{top}{stem}{middle}{shard}.{kind}" for stem in stems for shard in ("", "-0*")]


def _fetch(source: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # the hub's client and its transport have many exceptions, without a common base
        raise FileNotFoundError(
            f"'{source}' is no file or folder here, and could not be had from the hub ({type(error).__name__}): check "
            "the name and the connection, or give the path of a downloaded folder."
        ) from error
