"""Run by test_module.py as a program, `predict_ranks.py FOLDER SHARD`: `Trainer.predict` on two gloo ranks."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from constrained_diffusion.callbacks import NoiseResults
from constrained_diffusion.datamodules import SeedsDataModule
from constrained_diffusion.denoisers import Denoiser, DiffusersSchedule
from constrained_diffusion.diffusion import Normalizer
from constrained_diffusion.metrics import Evaluation, ViolationRate
from constrained_diffusion.noise_optimization.gradients import Hybrid2
from constrained_diffusion.noise_optimization.module import DirectNoiseOptimization
from constrained_diffusion.objectives import Reward
from constrained_diffusion.sampling import Sampler


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


def predict(folder: Path, shard: bool, devices: int) -> None:
    """Optimise four seeds on so many ranks; results lie in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    schedule = DiffusersSchedule({"num_train_timesteps": 100, "prediction_type": "epsilon"})
    module = DirectNoiseOptimization(
        Denoiser(Tiny(), schedule, Normalizer(), sample_shape=(1, 4, 4)), Dark(), Sampler(steps=3, eta=1.0),
        steps=4, permutations=5, evaluation=TooLight(), estimator=Hybrid2(5, shard=shard),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[NoiseResults()],
    )  # fmt: skip
    trainer.predict(module, datamodule=SeedsDataModule(predict_samples=4, eval_batch_size=2), return_predictions=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    predict(Path(sys.argv[1]), sys.argv[2] == "shard", 2)
