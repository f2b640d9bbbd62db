"""What `predict` writes: every sample as a picture, and all of them as one tensor file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save_file

from constrained_diffusion.diffusion.rejection import InfeasibleError, RejectionResult
from constrained_diffusion.evaluation import images
from constrained_diffusion.runtime.files import rename_existing
from constrained_diffusion.runtime.run_folder import RunFolder


class SampleWriter(Callback):
    """Writes `<run>/samples/seed-000000.png` for samples that can be drawn and `samples-rank0.safetensors` for all.

    The module's `evaluation`, where it has one, draws; else images are drawn as they are. The tensor file holds
    `samples` `(N, *shape)` in the data's units and `seeds` `(N,)`. What an earlier `predict` of the run wrote is kept
    as `samples-1`, `samples-2`, ..

    Raises:
        InfeasibleError: samples that were to be feasible are not, and no `Certificate` has said so before.
    """

    def __init__(self) -> None:
        self._samples: list[torch.Tensor] = []
        self._seeds: list[torch.Tensor] = []
        self._infeasible: list[int] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._samples, self._seeds, self._infeasible = [], [], []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        samples = outputs.samples if isinstance(outputs, RejectionResult) else outputs
        if isinstance(outputs, RejectionResult):
            self._infeasible += batch.seeds.cpu()[~outputs.accepted].tolist()
        self._samples.append(samples.float().cpu())
        self._seeds.append(batch.seeds.cpu())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._infeasible:
            raise InfeasibleError(
                f"{len(self._infeasible)} seed(s) found no feasible sample, the first {self._infeasible[0]}; nothing "
                "was written; give more draws (max_draws), and the callback Certificate, which ends at the first one."
            )
        folder = RunFolder.of(trainer).samples
        if trainer.is_global_zero:
            rename_existing(folder)
        trainer.strategy.barrier("samples put aside")
        folder.mkdir(parents=True, exist_ok=True)
        samples, seeds = torch.cat(self._samples), torch.cat(self._seeds)
        if not len(seeds):  # fewer seeds than ranks
            return
        save_file({"samples": samples, "seeds": seeds}, folder / f"samples-rank{trainer.global_rank}.safetensors")
        for sample, seed in zip(samples, seeds.tolist(), strict=True):
            if (picture := pictures(pl_module, sample[None].to(pl_module.device))) is not None:
                save_picture(picture[0], folder / f"seed-{seed:06d}.png")
        rank_zero_info(f"{len(samples)} samples lie in {folder}")


def pictures(module: LightningModule, clean: torch.Tensor) -> torch.Tensor | None:
    """Return what shows the samples, as `Evaluation.pictures`; images as they are where the module has no evaluation.

    Args:
        module: with or without an attribute `evaluation`.
        clean: `(B, *shape)`, in the data's units.
    """
    evaluation: Any = getattr(module, "evaluation", None)
    drawn: torch.Tensor | None = images(clean) if evaluation is None else evaluation.pictures(clean)
    return drawn


def save_picture(image: torch.Tensor, path: Path) -> None:
    """Write an image `(1, 3 or 4, H, W)` in [0, 1] as an 8-bit file."""
    from PIL import Image

    pixels = (image.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0)
    Image.fromarray(pixels.squeeze(-1).numpy()).save(path)
