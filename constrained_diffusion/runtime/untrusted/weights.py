"""Checkpoints and safetensors files."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

_ZIP = b"PK\x03\x04"  #: how every file of torch.save begins, but those of before 2020
_BYTEARRAYS = (b"c__builtin__\nbytearray\n", b"cbuiltins\nbytearray\n")  #: how a pickle names the class
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  #: of a terminal, in torch's messages
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")  #: how torch names the class, or function, that it does not unpickle
_PARAMETERS_PER_BYTE = 2  #: 1 at most (8-bit floats), and some modules register a parameter twice


class HoldsObjectsError(ValueError):
    """A file of torch.save holds objects besides tensors and plain types.

    Args:
        path: the file.
        found: the class, or the function, of the first that was found.
    """

    def __init__(self, path: str | Path, found: str) -> None:
        self.found = found
        super().__init__(
            f"'{path}' cannot be read: it holds {found} besides its tensors, and such objects can execute code: "
            "expected tensors and plain types alone; take a checkpoint without it."
        )


def read_checkpoint(path: str | Path, *needs: str, map_location: str = "cpu") -> dict[str, Any]:
    """Return what `torch.save` wrote: a dictionary of plain types and tensors, no code.

    The bytes of every entry are compared with its checksum, so that files that were saved without any
    (`set_crc32_options(False)`) are refused. In torch's format of before 2020 there is none, and there a bytearray may
    claim more memory than the file has.

    Args:
        path: the file.
        needs: keys that the dictionary must have.
        map_location: "meta" where no values are needed.

    Raises:
        FileNotFoundError: there is no such file.
        HoldsObjectsError: it holds objects of other classes, or code.
        ValueError: it is truncated or damaged, would unpack to more than its size, is no dictionary, or a key is
            missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint '{path}'.")
    check_archive(path)
    try:
        content: Any = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if not (found := _REFUSED.search(str(error))):
            raise _unreadable(path, f"{type(error).__name__}: {_first_line(error)}") from error
        raise HoldsObjectsError(path, found[1][:80]) from error
    except Exception as error:  # torch, pickle and zipfile have many, without a common base
        raise _unreadable(path, f"{type(error).__name__}: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise _unreadable(path, f"it holds a {type(content).__name__}, not a dictionary")
    if missing := sorted(set(needs) - content.keys()):
        raise ValueError(
            f"'{path}' is not a checkpoint of a fit: it has no {' and no '.join(missing)}; give a file from a run's "
            "folder checkpoints."
        )
    state = content.get("state_dict", {})
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise _unreadable(path, "its state_dict does not map names to tensors")
    return content


def check_archive(path: str | Path) -> None:
    """Raise ValueError where the file is a zip archive, as checkpoints are, that is damaged or grows when unpacked."""
    file = Path(path)
    with file.open("rb") as opened:
        if opened.read(len(_ZIP)) != _ZIP:
            return
    try:
        with zipfile.ZipFile(file) as archive:
            entries, size = archive.infolist(), file.stat().st_size
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > size:  # torch compresses nothing
                raise _unreadable(path, f"it would unpack from {size:,} to {unpacked:,} bytes")
            pickles = [archive.read(entry) for entry in entries if entry.filename.endswith("data.pkl")]
            if any(opcode in content for content in pickles for opcode in _BYTEARRAYS):
                raise _unreadable(path, "it holds a bytearray, which may claim any size")
            damaged = archive.testzip()
    except ValueError:
        raise
    except Exception as error:  # zipfile has many for broken archives, without a common base
        raise _unreadable(path, f"{type(error).__name__}: {_first_line(error)}") from error
    if damaged:
        raise _unreadable(path, f"the checksum of its entry {damaged} is wrong")


def read_tensors(path: str | Path, *needs: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file.

    Args:
        path: the file.
        needs: names of tensors that it must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or of another kind, or a tensor is missing.
    """
    from safetensors import safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no safetensors file '{path}'.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no iterable itself)
            metadata = file.metadata() or {}
    except Exception as error:  # safetensors' own is no ValueError, and torch and the system have others
        raise ValueError(
            f"'{path}' is no complete safetensors file ({_first_line(error)}), it may be truncated; copy or make it "
            "again."
        ) from error
    if missing := sorted(set(needs) - tensors.keys()):
        raise ValueError(f"'{path}' should hold the tensor {missing[0]}, but does not; copy or make it again.")
    return tensors, metadata


@contextmanager
def no_larger_than(weights: Path) -> Iterator[None]:
    """Raise ValueError inside the block as soon as a module that is built there could not be filled from `weights`.

    Args:
        weights: the file, or the folder of files, that its parameters are to come from.
    """
    files = [weights] if weights.is_file() else [file for file in weights.rglob("*") if file.is_file()]
    size, parameters = sum(file.stat().st_size for file in files), 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        parameters += 0 if parameter is None else parameter.numel()
        if parameters > _PARAMETERS_PER_BYTE * size:
            raise ValueError(
                f"the config beside '{weights}' describes a network of more than {parameters:,} parameters, which are "
                f"not in its {size:,} bytes: the weights are truncated or from another model; fetch both again."
            )

    hook = register_module_parameter_registration_hook(count)  # before a layer fills its parameters
    try:
        yield
    finally:
        hook.remove()


def _unreadable(path: str | Path, why: str) -> ValueError:
    return ValueError(
        f"'{path}' cannot be read: it is truncated, or not a checkpoint of ours ({why}); take an earlier one."
    )


def _first_line(error: Exception) -> str:
    said = _COLOURS.sub("", str(error)).strip() or type(error).__name__
    return said.splitlines()[0][:200].strip()
