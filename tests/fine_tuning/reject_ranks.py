"""Run by test_rejecting.py as a program, `reject_ranks.py FOLDER`: certified predictions on two gloo ranks."""

from __future__ import annotations

import runpy
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from constrained_diffusion.callbacks import Certificate, SampleWriter
from constrained_diffusion.datamodules import SeedsDataModule
from constrained_diffusion.denoisers import Denoiser
from constrained_diffusion.diffusion.rejection import Rejection
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.statistics import ViolationRate

Tiny = runpy.run_path(str(Path(__file__).with_name("fit_ranks.py")))["Tiny"]
SEEDS, LIMIT = 9, 0.5  # odd, so that the ranks' shares and their numbers of batches differ
CASES: dict[str, dict[str, Any]] = {  # arguments of `predict`
    "certified": {},
    "one seed fails": {"rejection": Rejection(5)},  # one of the first rank's needs 6 draws
    "all fail": {"limit": -1.0, "rejection": Rejection(2)},
    "few seeds": {"seeds": 1},
}


class BrightnessAtMost(Constraint):
    """g = mean pixel - limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1) - self.limit


class TopBrightness(Evaluation):
    """Another opinion: a sample violates where its upper half is brighter than the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = ViolationRate()

    def update(self, clean: Tensor) -> None:
        self.rate.update(self.violating(clean))

    @staticmethod
    def violating(clean: Tensor) -> Tensor:
        return clean[:, :, :4].flatten(1).mean(1) > LIMIT

    def compute(self) -> dict[str, Any]:
        return {**self.rate.compute(), "metrics": {}}

    def reset(self) -> None:
        self.rate.reset()

    def marks(self, clean: Tensor) -> list[str]:
        return [""] * len(clean)


def module(limit: float = LIMIT, **settings: Any) -> ConstrainedDiffusion:
    """A random denoiser of which about three samples in ten are dark enough."""
    torch.manual_seed(0)
    schedule = VariancePreserving(torch.cos(torch.linspace(0.02, 1.5, 100)) ** 2)
    denoiser = Denoiser(Tiny(), schedule, sample_shape=(1, 8, 8))
    given = {"evaluation": TopBrightness(), "sampler": Sampler(steps=4), "rejection": Rejection()}
    return ConstrainedDiffusion(denoiser, BrightnessAtMost(limit), **{**given, **settings})


def predict(folder: Path, ranks: int = 1, seeds: int = SEEDS, batch: int = 2, **settings: Any) -> Any:
    """Predict into `folder/samples`; the predictions of this rank."""
    trainer = Trainer(
        accelerator="cpu", devices=ranks, default_root_dir=folder, callbacks=[SampleWriter(), Certificate()],
        strategy=DDPStrategy(timeout=timedelta(minutes=4)) if ranks > 1 else "auto",
        logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    data = SeedsDataModule(predict_samples=seeds, eval_batch_size=batch)
    return trainer.predict(module(**settings), datamodule=data)


def rank_main(rank: int, folder: Path) -> None:
    """Be one of two ranks, as a launcher would start it."""
    said = {}
    for name, case in CASES.items():
        said[name] = ""
        try:
            predict(folder / name, 2, **case)
        except (RuntimeError, ValueError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    torch.save(said, folder / f"{rank}.pt")


if __name__ == "__main__":
    from launch import start

    start(rank_main)
