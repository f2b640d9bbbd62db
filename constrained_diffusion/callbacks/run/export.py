"""The weights of a finished fit, in the field's own format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info

from constrained_diffusion.runtime.run_folder import RunFolder


class Export(Callback):
    """Calls `module.export(<run>/export)` at the end of a fit, with the best feasible weights where there are some.

    What the data has to say to those who use the weights, its own `export` writes beside them.

    Args:
        folder: name of the folder inside the run; what lies there is replaced.

    Raises:
        ValueError: the name would lead elsewhere.
    """

    def __init__(self, folder: str = "export") -> None:
        if Path(folder).name != folder or folder in ("", ".", ".."):
            raise ValueError(f"Export expects the name of a folder inside the run, without a path, got '{folder}'.")
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        run = RunFolder.of(trainer)
        folder, best = run.path / self.folder, run.best_feasible
        pl_module.before_export()
        if trainer.is_global_zero:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier part of this very run
            pl_module.export(folder, *([best] if best.is_file() else []))
            beside = getattr(getattr(trainer, "datamodule", None), "export", None)
            if beside is not None:
                beside(folder)
            rank_zero_info(f"the weights are in {folder}")
