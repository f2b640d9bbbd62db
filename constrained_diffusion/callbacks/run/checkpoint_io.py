"""Checkpoints that are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from constrained_diffusion.runtime.files import disk_full, replaced


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and then renames it: a kill leaves the old one or the new one.

    Lightning's own writes to the system's folder for temporary files and moves from there, which is a copy wherever
    that folder is another file system. Paths with a scheme (`s3://..`) are left to Lightning.

    A full disk leaves the old one, too; `save_checkpoint` then raises OSError with the checkpoint's name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replaced(file) as opened:
                torch.save(checkpoint, opened)
        except (OSError, RuntimeError) as error:  # torch wraps what a write says
            if disk_full(error) is None:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error
