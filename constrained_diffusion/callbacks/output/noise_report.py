"""The callback that keeps pictures of a noise optimisation's way, and writes its `report.html`."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from constrained_diffusion.callbacks.output.samples import save_picture
from constrained_diffusion.noise_optimization.hooks import AllRanks, NoiseCallback, writing_rank
from constrained_diffusion.noise_optimization.jobs import Job
from constrained_diffusion.noise_optimization.optimizer import Run
from constrained_diffusion.reports.noise_report import STRIPS, write_noise_report
from constrained_diffusion.runtime import untrusted
from constrained_diffusion.runtime.files import write_bytes
from constrained_diffusion.runtime.run_folder import RunFolder

FRAMES = 8  #: pictures of each sample on its way


class NoiseReport(NoiseCallback):
    """Keeps pictures of the first samples on their way, and writes `report.html` when `predict` ends.

    Until then they lie in `strips/KEY/STEP.png`, so that a command that was killed shows all of the way; then, side by
    side, in `strips/KEY.png`.
    """

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._ranks = AllRanks()
        self._shown = {path.name.removesuffix(".png") for path in _strips_folder(trainer).glob("*")}

    def on_batch_begin(self, trainer: Trainer, module: LightningModule, jobs: Sequence[Job], run: Run) -> None:
        if trainer.global_rank == writing_rank(trainer):
            for job in jobs:
                for frame in _frames(_strips_folder(trainer) / job.key):
                    if int(frame.stem) >= run.evaluations:  # of steps that a kill has cost, and which come again
                        frame.unlink()

    def on_evaluation(
        self, trainer: Trainer, module: Any, jobs: Sequence[Job], run: Run, clean: dict[int, Tensor]
    ) -> None:
        if trainer.global_rank != writing_rank(trainer):
            return
        step, every = run.evaluations - 1, max(1, run.settings.steps // (FRAMES - 1))
        for row, sample in clean.items():
            key, ends = jobs[row].key, run.records[row].stopped != "none"
            known = key in self._shown or (step == 0 and len(self._shown) < STRIPS)
            if known and (step % every == 0 or ends):
                with torch.no_grad():
                    drawn = module.pictures(sample[None].float())
                if drawn is not None:
                    self._shown.add(key)
                    folder = _strips_folder(trainer) / key
                    folder.mkdir(parents=True, exist_ok=True)
                    save_picture(drawn[0], folder / "draft.png")
                    (folder / "draft.png").replace(folder / f"{step:06d}.png")  # atomic: no kill leaves half a picture

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not `on_predict_end`, which a rank without jobs never reaches.
        self._ranks.wait()
        if trainer.is_global_zero:
            for folder in [path for path in _strips_folder(trainer).glob("*") if path.is_dir()]:
                if frames := _frames(folder):
                    write_bytes(folder.with_name(f"{folder.name}.png"), strip(frames))
                shutil.rmtree(folder)
            print(f"report: {write_noise_report(RunFolder.of(trainer).path)}")


def _strips_folder(trainer: Trainer) -> Path:
    return RunFolder.of(trainer).strips


def _frames(folder: Path) -> list[Path]:
    """Return the pictures of one sample, by step."""
    return sorted(folder.glob("[0-9]*.png"))


def strip(frames: Sequence[Path]) -> bytes:
    """Return pictures of one size side by side as a PNG; small ones are enlarged."""
    from PIL import Image

    pixels = []
    for frame in frames:
        with untrusted.open_picture(frame) as opened:
            pixels.append(np.asarray(opened))
    image, page = Image.fromarray(np.concatenate(pixels, axis=1)), io.BytesIO()
    factor = max(1, 96 // image.height)
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(page, "PNG")
    return page.getvalue()
