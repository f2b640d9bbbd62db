"""The card of a zoo entry: what the weights are, how they were made, and what was measured, for people and programs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.files import write_json, write_text

CARD, CARD_TEXT = "card.json", "CARD.md"


@dataclass(frozen=True)
class Card:
    """Everything that a card says; `figures` come from measurement, never from the keyboard."""

    name: str  #: the zoo name
    summary: str  #: one sentence: what the network is and what it is for
    data: str  #: what it was trained on
    data_licence: str
    command: str  #: the command that trains it again
    training: dict[str, Any]  #: seed, steps, seconds and versions, as the training run recorded them
    figures: dict[str, Any]  #: measured figures by name, JSON-ready
    notes: list[str] = field(default_factory=list)  #: whatever a user must know besides
    weights_licence: str = "Apache-2.0"
    samples: dict[str, Any] = field(default_factory=dict)  #: of a denoiser: how `samples.png` was drawn
    training_samples: dict[str, Any] = field(default_factory=dict)  #: how `training.png` was, a fine-tuning set


DataMaker = Callable[..., Any]  #: makes an entry's data module; keyword arguments go on to its class


class ZooEntry(NamedTuple):
    """How a domain says that an entry of the zoo is made; see `cli.build_zoo`."""

    name: str  #: the zoo name, that of the folder
    make: Callable[[Path, Path, DataMaker], Card]  #: (target, export, maker of the data module) -> card
    data_module: str  #: the class in `datamodules` that the entry is measured with


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(card: Card, folder: str | Path) -> None:
    """Write `card.json` and `CARD.md` into `folder`, with the sha256 of every other file that lies there or below."""
    target = Path(folder)
    facts = {**asdict(card), "sha256": _hashes(target)}
    write_json(target / CARD, facts)
    write_text(target / CARD_TEXT, _markdown(facts))


def read(folder: str | Path) -> dict[str, Any]:
    """Return the content of `card.json`.

    Raises:
        FileNotFoundError: the folder has no card.
        ValueError: it is damaged, or holds no hashes.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise FileNotFoundError(
            f"'{folder}' has no {CARD}; write it with `python -m constrained_diffusion.cli.build_zoo`."
        )
    content = untrusted.read_json(path)
    if not isinstance(content.get("sha256"), dict):
        raise ValueError(f"'{path}' should hold the sha256 of every file beside it, by name; make it again.")
    return content


def mismatches(folder: str | Path) -> list[str]:
    """Return the files whose sha256 is not what the card says, or that only one of the two knows, sorted."""
    written, found = read(folder)["sha256"], _hashes(Path(folder))
    differ = {file for file in written.keys() & found.keys() if written[file] != found[file]}
    return sorted(differ | (written.keys() ^ found.keys()))


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (CARD, CARD_TEXT))
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files if "__pycache__" not in path.parts}


def _markdown(facts: dict[str, Any]) -> str:
    lines = [f"# {facts['name']}", "", facts["summary"], "", "| | |", "|---|---|"]
    lines += [
        f"| data | {facts['data']} |",
        f"| licence of the data | {facts['data_licence']} |",
        f"| licence of the weights | {facts['weights_licence']} |",
        f"| made by | `{facts['command']}` |",
    ]
    lines += [f"| {key} | {value} |" for key, value in facts["training"].items()]
    lines += ["", "## Measured", "", "| figure | value |", "|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | {_show(value)} |" for key, value in facts["figures"].items()]
    if facts["notes"]:
        lines += ["", "## Notes", "", *(f"- {note}" for note in facts["notes"])]
    lines += ["", "## Files", "", "| file | sha256 |", "|---|---|"]
    lines += [f"| {file} | `{digest}` |" for file, digest in facts["sha256"].items()]
    return "\n".join([*lines, ""])


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_show(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_show(item)}" for key, item in value.items())
    return str(value)
