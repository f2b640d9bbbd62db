"""A training step of a module with its optimiser: drawing noise, forward, penalty, backward, optimiser, EMA."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import UNet2DModel
from lightning.pytorch import Trainer
from torch import Tensor

from constrained_diffusion import ClassProbability, ConstrainedDiffusion, Denoiser, PretrainedDenoiser
from constrained_diffusion.batch import Batch, NoisyBatch
from constrained_diffusion.denoisers import DiffusersSchedule
from constrained_diffusion.domains.images.classifiers import PretrainedClassifier
from constrained_diffusion.fine_tuning.loss import Measured, PenaltyLoss
from constrained_diffusion.objectives import StepRecord
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows

PAPER = Path(__file__).parents[2] / "configs" / "pretrain" / "mnist_paper.yaml"
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
}


def on_gpu() -> bool:
    """Return whether there is a GPU, which is then what is measured."""
    return torch.cuda.is_available()


def denoiser() -> Denoiser:
    """Return the paper's network of 113.7 M parameters on a GPU, with random weights; the zoo's MNIST network else."""
    if not on_gpu():
        return PretrainedDenoiser("mnist_denoiser")
    given = yaml.safe_load(PAPER.read_text())["model"]["init_args"]["denoiser"]["init_args"]
    schedule = DiffusersSchedule(given["noise_schedule"]["init_args"]["config"])
    return Denoiser(UNet2DModel(**given["network"]["init_args"]), schedule)


class Noise(DiffusionDataModule):
    """Random images: the time of a step does not depend on what they show.

    Args:
        side: of an image, in pixels.
        kwargs: of `DiffusionDataModule`.
    """

    def __init__(self, side: int = 28, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.side = side

    def build(self) -> tuple[TensorRows, TensorRows]:
        images = torch.rand(513, 1, self.side, self.side, generator=torch.Generator().manual_seed(0))
        return TensorRows(images[:512]), TensorRows(images[512:])


def module(formulation: str | None, kind: type[ConstrainedDiffusion] = ConstrainedDiffusion) -> ConstrainedDiffusion:
    """Return a module with the constraint on a class, or without constraints where `formulation` is None."""
    constraint = ClassProbability(PretrainedClassifier("mnist_classifier"), label=4) if formulation else None
    optimizer = partial(torch.optim.Adam, lr=1e-6)
    return kind(denoiser(), constraint, formulation or "penalty", max_timestep=800, optimizer=optimizer)


class Step:
    """One module, ready to step; called with a batch it makes one step and returns its seconds."""

    def __init__(self, formulation: str | None, given: Any, kind: type[ConstrainedDiffusion] | None = None) -> None:
        self.module = module(formulation, kind or ConstrainedDiffusion)
        self.trainer = Trainer(
            max_steps=1,
            precision=given.precision,
            default_root_dir=tempfile.mkdtemp(),
            accelerator="gpu" if on_gpu() else "cpu",
            devices=1,
            **QUIET,
        )
        side = self.module.denoiser.sample_shape[-1]
        self.trainer.fit(self.module, datamodule=Noise(side, batch_size=given.batch_size))
        if on_gpu():
            self.module.cuda()  # Lightning brings it back to the host when a fit is over
        self.module.log = self.module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
        self.module.steering.penalty_coefficient.fill_(0.05)
        self.optimizer: Any = self.module.configure_optimizers()

    def batch(self, size: int) -> Batch:
        """Return a batch of random images for this module."""
        return Batch(torch.rand(size, *self.module.denoiser.sample_shape, device=self.module.device), rows=None)

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of the whole step."""
        with self.trainer.precision_plugin.forward_context():
            loss: Tensor = self.module.training_step(batch, 0)["loss"]
        return loss

    def once(self, batch: Batch) -> None:
        """Make one step."""
        self.loss(batch).backward()
        self.finish()

    def finish(self) -> None:
        """Use the gradients: the optimiser, and the EMA."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.module.networks.update_ema()

    def __call__(self, batch: Batch) -> float:
        _wait()
        start = time.perf_counter()
        self.once(batch)
        _wait()
        return time.perf_counter() - start


class TwoPassLoss(PenaltyLoss):
    """One term alone: what the naive way computes in each of its two passes."""

    alone = "penalty"

    def diffusion_loss(self, step: NoisyBatch, *args: Any, **kwargs: Any) -> Tensor:
        """Return 0 in the pass for the penalty."""
        return step.noisy.new_zeros(()) if self.alone == "penalty" else super().diffusion_loss(step, *args, **kwargs)

    def penalty(self, record: StepRecord, noise_error: Tensor) -> Measured:
        """Return nothing in the pass for the diffusion loss, and compute nothing."""
        if self.alone == "penalty":
            return super().penalty(record, noise_error)
        none = noise_error.new_zeros(1)
        return Measured(none.sum(), none, none, none, none.sum(), none[:0])


class TwoPass(ConstrainedDiffusion):
    """A fit with `TwoPassLoss`."""

    loss_class = TwoPassLoss


class TwoPassStep(Step):
    """The naive way: the diffusion loss and its backward, then the network again for the penalty and its backward."""

    def __init__(self, given: Any) -> None:
        super().__init__("algorithm1", given, TwoPass)

    def once(self, batch: Batch) -> None:
        for term in ("diffusion", "penalty"):
            self.module.loss.alone = term  # type: ignore[assignment]
            self.loss(batch).backward()
        self.finish()


def alternating(plain: Step, others: dict[str, Step], given: Any) -> tuple[list[float], dict[str, list[float]]]:
    """Return the seconds of the plain steps, and the ratios of the others' to the plain step just before them."""
    batch = plain.batch(given.batch_size)
    for step in (plain, *others.values()):
        for _ in range(3):
            step(batch)
    seconds: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for _ in range(given.pairs):
        for name, step in others.items():
            seconds.append(plain(batch))
            ratios[name].append(step(batch) / seconds[-1])
    return seconds, ratios


def _wait() -> None:
    if on_gpu():
        torch.cuda.synchronize()
