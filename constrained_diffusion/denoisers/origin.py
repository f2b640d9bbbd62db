"""The pipeline that a denoiser was read from: its class and all its other parts go into an export unchanged."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.files import write_json

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data"}
_INDEX = re.compile(r"(?P<start>.+\.index)(?:\.(?P<variant>[^.]+))?\.json")  # of weights in shards


class Origin(NamedTuple):
    """Where a pipeline lies, and what of it stands in the denoiser."""

    folder: Path
    variant: str | None = None  #: of its weights
    own_schedule: bool = True  #: whether the denoiser has the pipeline's own schedule
    own_autoencoder: bool = True  #: whether it has the pipeline's own autoencoder


def copy_parts(origin: Origin, target: Path, written: dict[str, Any]) -> None:
    """Write the pipeline's index to `target`, and its parts but for those in `written`.

    Args:
        origin: the pipeline.
        target: the folder of the export.
        written: objects of diffusers that the export has already, by the name of their folder.
    """
    index = untrusted.read_json(origin.folder / "model_index.json")
    for name, part in index.items():
        if not isinstance(part, list) or not any(part):
            continue
        if name in written:
            index[name] = ["diffusers", type(written[name]).__name__]
        elif (origin.folder / name).is_dir():
            _copy(origin.folder / name, target / name, origin.variant)
        else:  # a safety checker, which is not fetched from the hub
            index[name] = [None, None]
    write_json(target / "model_index.json", index)


def place_of(kind: tuple[str, ...], origin: Origin) -> str:
    """Return the name of the folder of the network (`COMPONENTS`) or of the autoencoder (`AUTOENCODERS`)."""
    index = untrusted.read_json(origin.folder / "model_index.json")
    return next(name for name in kind if isinstance(index.get(name), list) and any(index[name]))


def _copy(part: Path, target: Path, variant: str | None) -> None:
    """Copy the files of one part, of its weights those of `variant`, which then have the names of none."""
    target.mkdir()
    marked = f".{variant}" if variant else ""
    weights = [file for file in part.iterdir() if file.suffix in _WEIGHTS and _variant(file.name) == variant]
    kinds = [kind for kind in (".safetensors", ".bin") if any(file.suffix == kind for file in weights)][:1]
    for file in (file for file in part.iterdir() if file.is_file()):
        index = _INDEX.fullmatch(file.name)
        if index and index["variant"] == variant:
            text = file.read_text(encoding="utf-8")
            (target / f"{index['start']}.json").write_text(text.replace(marked, "") if variant else text, "utf-8")
        elif file.suffix not in _WEIGHTS and not index:
            shutil.copy(file, target / file.name)
        elif file in weights and file.suffix in kinds:
            shutil.copy(file, target / file.name.replace(marked, ""))


def _variant(name: str) -> str | None:
    """Return the variant of a weights file, such as fp16 of "model.fp16-00001-of-00002.safetensors"."""
    return name.split(".")[1].partition("-")[0] if name.count(".") > 1 else None
