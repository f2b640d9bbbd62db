"""Checkpoints are whole, on the disk before they take their place, or not there."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from constrained_diffusion.callbacks.run.checkpoint_io import AtomicCheckpointIO

STATE = {"weights": torch.arange(1000.0)}


def test_the_content_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after a rename alone may leave the new name with nothing in it."""
    done: list[tuple[str, int]] = []
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append(("synced", os.fstat(descriptor).st_size))
        sync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append(("renamed", self.stat().st_size))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    file = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, file)
    size = file.stat().st_size
    assert done == [("synced", size), ("renamed", size)]  # all of it, and in this order
    assert torch.equal(torch.load(file, weights_only=True)["weights"], STATE["weights"])


class Full(io.BufferedWriter):
    """A file on a disk that has room for 100 bytes."""

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, file)
    before = file.read_bytes()
    monkeypatch.setattr(Path, "open", lambda self, mode: Full(io.FileIO(self, "w")))
    with pytest.raises(OSError, match="No space left on device: .*last.ckpt") as told:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1000)}, file)
    monkeypatch.undo()
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(file))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"function": lambda: None}, tmp_path / "last.ckpt")
