"""Earlier results stay: a command that writes again in a run first puts aside what is there."""

from __future__ import annotations

from itertools import count
from pathlib import Path


def rename_existing(path: Path) -> None:
    """Rename what lies at `path`, if anything, to the first free of `name-1.ext`, `name-2.ext`, .. beside it."""
    if not path.exists():
        return
    free = next(other for k in count(1) if not (other := path.with_stem(f"{path.stem}-{k}")).exists())
    path.rename(free)
