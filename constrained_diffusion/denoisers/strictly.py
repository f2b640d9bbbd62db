"""Models of diffusers and transformers, read from their folders strictly: every tensor is there, and no code runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from constrained_diffusion.runtime import untrusted

_Loaded = TypeVar("_Loaded")


def load_strictly(cls: Any, folder: Path, variant: str | None = None, **settings: Any) -> Any:
    """Return the model of class `cls` in `folder`, all of whose tensors the files there have.

    Args:
        cls: a model class of diffusers or transformers.
        folder: config and weights, whole or in shards.
        variant: of the weights' files, such as "fp16".
        settings: further arguments of `from_pretrained`.

    Raises:
        ValueError: the weights are missing, truncated, from another model, or of another variant alone.
    """
    check_variant(folder, variant)
    for pickled in folder.glob("*.bin"):
        untrusted.check_archive(pickled)

    def load() -> Any:
        with untrusted.no_larger_than(folder):
            return cls.from_pretrained(
                str(folder), output_loading_info=True, local_files_only=True, variant=variant, **settings
            )

    model, found = reading(folder, load)
    if wrong := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]])):
        raise foreign(folder, f"the {cls.__name__} of its config finds no fitting {wrong[0]}")
    return model


def reading(folder: Path, load: Callable[[], _Loaded]) -> _Loaded:
    """Return what `load` returns; whatever it raises becomes the one error of weights that do not fit."""
    try:
        return load()
    except Exception as error:  # torch, safetensors, diffusers and transformers have many, without a common base
        raise foreign(folder, error) from error


def check_variant(folder: Path, variant: str | None) -> None:
    """Raise ValueError where the weights in `folder` are those of another variant alone, and name it."""
    names = sorted(file.name for kind in ("safetensors", "bin") for file in folder.glob(f"*.{kind}"))
    variants = {name.split(".")[1].partition("-")[0] if name.count(".") > 1 else None for name in names}
    if names and variant not in variants:
        others = [repr(other) for other in sorted(filter(None, variants))] + ["None"] * (None in variants)
        asked = f"none of the variant '{variant}'" if variant else "none without a variant"
        raise ValueError(
            f"'{folder}' holds weights ({', '.join(names[:3])}), but {asked}: give variant={' or '.join(others)}."
        )


def foreign(source: Path, detail: object) -> ValueError:
    """Return the error that the weights in `source` are not what its config says, or are among other objects."""
    if isinstance(detail, untrusted.HoldsObjectsError):
        return ValueError(
            f"'{source}' holds {detail.found} besides its tensors, and is not read, because such objects can execute "
            "code: expected tensors and plain types alone; save the weights by themselves, "
            "torch.save(module.state_dict(), 'weights.pt'), and give that file, with `network`, `noise_schedule` and, "
            "for names that begin with one, `prefix`."
        )
    said = f"{type(detail).__name__}: {detail}" if isinstance(detail, Exception) else str(detail)
    said = said.splitlines()[0][:300].rstrip(". ")
    return ValueError(
        f"the weights in '{source}' are truncated or from another model: {said}; give the whole file, with the network "
        "that it was made by."
    )
