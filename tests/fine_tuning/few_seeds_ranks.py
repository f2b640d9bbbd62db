"""Run by test_few_seeds.py as a program, `few_seeds_ranks.py FOLDER`: three gloo ranks, two samples of everything."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from constrained_diffusion.cli import defaults
from constrained_diffusion.denoisers import Denoiser
from constrained_diffusion.diffusion.rejection import Rejection
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.domains.images import ClassEvaluation
from constrained_diffusion.domains.images.features import ReferenceFeatures
from constrained_diffusion.domains.mazes import PlanEvaluation
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows

RANKS, SEEDS = 3, 2
SHAPES = {"images": (1, 8, 8), "plans": (5, 4, 2)}


class Tiny(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        self.layer = nn.Linear(size, size)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        output: Tensor = self.layer(noisy.flatten(1)).view_as(noisy)
        return output


class Judge(nn.Module):
    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh()), nn.Linear(3, 4)

    def features(self, images: Tensor) -> Tensor:
        output: Tensor = self.body(images)
        return output

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.head(self.features(images))
        return output


class MeanAtMost(Constraint):
    """g = mean - limit; refuses to judge nothing."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, clean: Tensor) -> Tensor:
        assert len(clean)
        return clean.flatten(1).mean(1) - self.limit


class Data(DiffusionDataModule):
    """24 rows to train on, and two that are held out."""

    def __init__(self, kind: str) -> None:
        few = dict.fromkeys(("val_samples", "test_samples", "predict_samples"), SEEDS)
        super().__init__(batch_size=6, eval_batch_size=2, **few)
        self.kind = kind

    def build(self) -> tuple[TensorRows, TensorRows]:
        rows = torch.rand(26, *SHAPES[self.kind], generator=torch.Generator().manual_seed(2))
        return TensorRows(rows[:24]), TensorRows(rows[24:])


def evaluation(kind: str, folder: Path) -> Any:
    if kind == "plans":
        return PlanEvaluation(reference=None, executed=0, goal=[-2.5, 1.5])
    images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    reference = ReferenceFeatures.measure(Judge().features, [(images, torch.arange(80) % 4)], 4, keep=20)
    reference.save(folder / "reference.safetensors")
    return ClassEvaluation(Judge(), str(folder / "reference.safetensors"), label=2)


def commands(kind: str, folder: Path, ranks: int) -> dict[str, Any]:
    """Fit, validate, test and predict as the command line does; return what was measured."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    schedule = VariancePreserving(torch.cos(torch.linspace(0.02, 1.5, 100)) ** 2)
    module = ConstrainedDiffusion(
        Denoiser(Tiny(SHAPES[kind]), schedule, sample_shape=SHAPES[kind]),
        MeanAtMost(0.47),
        evaluation=evaluation(kind, folder),
        sampler=Sampler(steps=3),
        rejection=Rejection(50),
        optimizer=partial(torch.optim.SGD, lr=1e-3),
    )
    data: LightningDataModule = Data(kind)

    def trainer(fit: bool) -> Trainer:
        return Trainer(
            accelerator="cpu", devices=ranks, default_root_dir=folder, max_epochs=1,
            strategy=DDPStrategy(timeout=timedelta(minutes=2)) if ranks > 1 else "auto",
            callbacks=defaults.callbacks(module, "few", fit), use_distributed_sampler=False,
            logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip

    fitting, testing = trainer(fit=True), trainer(fit=False)
    fitting.fit(module, data)
    found: dict[str, Any] = {"fit": numbers(fitting)}
    testing.validate(module, data, verbose=False)
    found["validate"] = numbers(testing)
    testing.test(module, data, verbose=False)
    found["test"] = module.evaluator.results
    testing.predict(module, data, return_predictions=False)
    return found


def numbers(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def rank_main(rank: int, folder: Path) -> None:
    """Be one of three ranks, as a launcher would start it."""
    torch.save({kind: commands(kind, folder / kind, RANKS) for kind in SHAPES}, folder / f"{rank}.pt")


if __name__ == "__main__":
    from launch import start

    start(rank_main, RANKS)
