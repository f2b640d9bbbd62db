"""Makes a zoo entry from a finished training run: copies the weights, measures them, and writes the card.

    python -m constrained_diffusion.cli.build_zoo classifier --export <run>/export --data_dir <folder with MNIST/>

Each domain declares its own entries. Every figure in a card is measured here; seed and time come from the run's own
record.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from constrained_diffusion import datamodules, domains
from constrained_diffusion.runtime import assets, cards
from constrained_diffusion.runtime.cards import ZooEntry

ENTRIES: dict[str, ZooEntry] = domains.zoo_entries()
ZOO = assets.FOLDER


def build(entry: str, export: str | Path, data_dir: str | None = None, zoo_dir: str | Path = ZOO) -> Path:
    """Make one entry and return its folder.

    Args:
        entry: a key of `ENTRIES`.
        export: the folder that the training run exported.
        data_dir: where the data lies; see the entry's data module.
        zoo_dir: where the entry's folder is written; the package's own zoo by default.

    Raises:
        ValueError: no such entry.
    """
    if entry not in ENTRIES:
        raise ValueError(f"no zoo entry is called '{entry}'; there are {', '.join(ENTRIES)}.")
    name, make, data_module = ENTRIES[entry]
    target = Path(zoo_dir) / name
    target.mkdir(parents=True, exist_ok=True)
    data: Any = partial(getattr(datamodules, data_module), **({} if data_dir is None else {"data_dir": data_dir}))
    card = make(target, Path(export), data)
    for file in target.rglob("*"):
        file.chmod(0o644 if file.is_file() else 0o755)  # safetensors writes files that only their owner may read
    cards.write(card, target)
    return target


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m constrained_diffusion.cli.build_zoo", description=__doc__)
    parser.add_argument("entry", choices=sorted(ENTRIES))
    parser.add_argument(
        "--export", default=".", help="the folder that the training run exported; none for polymer_judge"
    )
    parser.add_argument("--data_dir", default=None, help="the folder that holds MNIST/, or PolyGen's table")
    parser.add_argument("--zoo_dir", default=ZOO, help="where to write; the package's own zoo by default")
    given = parser.parse_args(arguments)
    print(build(given.entry, given.export, given.data_dir, given.zoo_dir) / cards.CARD_TEXT)


if __name__ == "__main__":
    main()
