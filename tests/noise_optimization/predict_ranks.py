"""Run by test_module.py as a program, `predict_ranks.py FOLDER KIND`: `Trainer.predict` on two gloo ranks."""

import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from constrained_diffusion.callbacks import NoiseReport, NoiseResults
from constrained_diffusion.datamodules import SeedsDataModule
from constrained_diffusion.denoisers import Denoiser, DiffusersSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.noise_optimization.gradients import Hybrid2
from constrained_diffusion.noise_optimization.module import DirectNoiseOptimization
from constrained_diffusion.objectives import Reward
from constrained_diffusion.statistics import ViolationRate


class Dark(Reward):
    differentiable = False

    def forward(self, clean: Tensor) -> Tensor:
        return -clean.flatten(1).mean(1)


class TooLight(Evaluation):
    """A sample violates where its mean exceeds 0."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = ViolationRate()

    def update(self, clean: Tensor) -> None:
        self.rate.update(clean.flatten(1).mean(1) > 0)

    def compute(self) -> dict[str, Any]:
        return {**self.rate.compute(), "metrics": {}}

    def reset(self) -> None:
        self.rate.reset()

    def marks(self, clean: Tensor) -> list[str]:
        return ["violation" if row.mean() > 0 else "" for row in clean]


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self.layer(noisy)


class Late(Callback):
    """The second rank begins so many seconds after the first."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_predict_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, _: int = 0) -> None:
        if batch_idx == 0:
            time.sleep(self.seconds * trainer.global_rank)


def predict(folder: Path, shard: bool, devices: int, late: float = 0.0, timeout: float = 600.0) -> None:
    """Optimise four seeds on so many ranks, whose process group has the timeout; results lie in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    schedule = DiffusersSchedule({"num_train_timesteps": 100, "prediction_type": "epsilon"})
    module = DirectNoiseOptimization(
        Denoiser(Tiny(), schedule, Normalizer(), sample_shape=(1, 4, 4)), Dark(), Sampler(steps=3, eta=1.0),
        steps=4, permutations=5, evaluation=TooLight(), estimator=Hybrid2(5, shard=shard),
    )  # fmt: skip
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=timeout)) if devices > 1 else "auto"
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[Late(late), NoiseResults(), NoiseReport()],
    )  # fmt: skip
    trainer.predict(module, datamodule=SeedsDataModule(predict_samples=4, eval_batch_size=2), return_predictions=False)


def predict_until_a_row_is_written(folder: Path) -> None:
    """The same on one rank, killed between the first two rows."""
    write = NoiseResults._write

    def one(self: Any, trainer: Trainer, module: Any, job: Any, record: Any) -> None:
        if self._kept:
            raise KeyboardInterrupt
        write(self, trainer, module, job, record)

    NoiseResults._write = one  # type: ignore[method-assign]
    with suppress(SystemExit):  # by which Lightning ends
        predict(folder, True, 1)
    NoiseResults._write = write  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    if kind == "late":
        predict(folder, False, 2, late=10.0, timeout=5.0)
    elif kind == "again":
        predict_until_a_row_is_written(folder)
        predict(folder, True, 2, late=3.0, timeout=30.0)
    else:
        predict(folder, kind == "shard", 2)
