"""Run by test_ranks.py as a program, `fit_ranks.py FOLDER`: many small fits on two gloo ranks, one after another."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.multiprocessing
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from constrained_diffusion.callbacks import PenaltyScheduler
from constrained_diffusion.callbacks.controllers.base import Violations
from constrained_diffusion.datamodules import GeneratedDataModule
from constrained_diffusion.denoisers import Denoiser
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.fine_tuning.divergence import KLFromPretrained
from constrained_diffusion.fine_tuning.loss import PenaltyLoss
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.objectives import Constraint, StepRecord
from constrained_diffusion.runtime.conditions import Labels
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows
from constrained_diffusion.runtime.sharding import whole

GLOBAL_BATCH, STEPS, TRAIN = 8, 20, 32
HELD_OUT, SEEDS = 9, 5  # odd, so that the ranks' shares differ
ADAM, SGD = partial(torch.optim.Adam, lr=1e-2), partial(torch.optim.SGD, lr=0.01)


@dataclass(frozen=True)
class Case:
    """One fit; what is not said is the same for all."""

    precision: Literal["64-true", "32-true"] = "64-true"
    optimizer: Any = ADAM
    scheduler: dict[str, Any] = field(default_factory=dict)
    formulation: str = "anchored_algorithm1"
    accumulate: int = 1
    max_timestep: int = 60
    every_other: bool = False  #: the constraints see no row of every second batch
    generated: bool = False
    multiplier: float = 0.0
    augmentation: float = 0.0
    kappa: float = 0.0  #: of a limit on the mean KL, where it is above 0
    sharded: bool = False  #: two ranks share out the weights as well
    told: bool = False  #: the network is told labels, some rows nothing, and constraints see guided predictions


BATCH = {"scope": "batch", "max_iterations": 3}
STOP = {"when_satisfied": "stop", "stop_below": 0.03}
CASES = {
    "adam": Case(),
    "adam batch": Case(scheduler=BATCH),
    "adam accumulated": Case(accumulate=2),
    "adam batch accumulated": Case(scheduler=BATCH, accumulate=2),
    "adam conditioned": Case(formulation="conditioned_algorithm1"),
    "adam generated": Case(generated=True),
    "adam told": Case(told=True),
    "adam told generated": Case(told=True, generated=True),
    "adam multiplier": Case(formulation="penalty", multiplier=0.3),
    "adam augmented": Case(formulation="penalty", multiplier=0.3, augmentation=2.0),
    "adam guarded": Case(formulation="penalty", kappa=1e-3, multiplier=0.3),
    "adam guarded accumulated": Case(formulation="penalty", kappa=1e-3, accumulate=2),
    "sgd": Case("32-true", SGD),
    "sgd batch": Case("32-true", SGD, BATCH),
    "sgd accumulated": Case("32-true", SGD, accumulate=2),
    "sgd sharded": Case("32-true", SGD, sharded=True),
    "sgd sharded batch": Case("32-true", SGD, BATCH, sharded=True),
    "adam sharded accumulated": Case(accumulate=2, sharded=True),
    "stop": Case(scheduler=STOP, formulation="penalty"),
    "stop batch": Case(scheduler=BATCH | STOP, formulation="penalty"),
    "stop accumulated": Case(scheduler=STOP, formulation="penalty", accumulate=2),
    "few rows": Case(max_timestep=15),
    "few rows accumulated": Case(max_timestep=15, accumulate=2),
    "few rows sgd": Case("32-true", SGD, formulation="penalty", max_timestep=15),
    "no rows in every other batch": Case(every_other=True, accumulate=2, formulation="algorithm1"),
}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.first, self.last = nn.Linear(1, 8), nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        shift = self.time(timesteps[:, None].to(noisy.dtype) / 100)[..., None, None]
        output: Tensor = self.last(nn.functional.silu(self.first(noisy) + shift))
        return output


class Told(Tiny):
    """One that is told a label; 3 stands for none."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(4, 16)

    def forward(self, noisy: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:  # type: ignore[override]
        output: Tensor = super().forward(noisy + self.label(class_labels).reshape(-1, 1, 4, 4), timesteps)
        return output


class TooBright(Constraint):
    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1) - 0.3


class BrightRows(Constraint):
    """Several values per sample, and no word on empty batches: `amax` refuses them."""

    def forward(self, clean: Tensor) -> Tensor:
        assert len(clean)
        return clean.flatten(1, 2).amax(2) - 0.7


class Data(DiffusionDataModule):
    def build(self) -> tuple[TensorRows, TensorRows]:
        # The rows are told labels where samples are asked for some.
        images = torch.rand(TRAIN + HELD_OUT, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        images[::2] *= 0.4
        labels = torch.arange(TRAIN + HELD_OUT) % 3
        told = [{"class_labels": part} if self.conditions else None for part in labels.split([TRAIN, HELD_OUT])]
        return TensorRows(images[:TRAIN], told[0]), TensorRows(images[TRAIN:], told[1])


class WatchedLoss(PenaltyLoss):
    """Notes how many rows the constraints of this rank saw in each batch."""

    every_other = False

    def penalty(self, record: StepRecord, noise_error: Tensor) -> Any:
        if not hasattr(self, "own_rows"):
            self.own_rows: list[int] = []
        if self.every_other and len(self.own_rows) % 2 == 1:
            values = {f.name: getattr(record, f.name) for f in fields(record) if f.name != "condition"}
            record = replace(record, **{name: value[:0] for name, value in values.items() if value is not None})
        self.own_rows.append(len(record.timesteps))
        return super().penalty(record, noise_error)


class Watched(ConstrainedDiffusion):
    """Notes which seeds this rank drew."""

    loss_class = WatchedLoss

    def watch(self, every_other: bool) -> None:
        self.loss.every_other = every_other
        self.seeds: dict[str, list[int]] = {"raw": [], "ema": []}

    def encoded_sample(self, seeds: Any, weights: Any = "ema", **how: Any) -> Tensor:
        self.seeds[weights] += seeds
        return super().encoded_sample(seeds, weights, **how)


class Scheduler(PenaltyScheduler):
    """Notes what it decides on."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.steered_by: list[list[float]] = []

    def update(self, trainer: Trainer, steering: Steering, violations: Violations) -> None:
        self.steered_by.append(violations.penalty.tolist())
        super().update(trainer, steering, violations)


class Watch(Callback):
    """Notes what each batch saw and what each validation was made of."""

    def __init__(self) -> None:
        names = ("coefficients", "penalties", "rows", "train_rows", "held_out")
        self.seen: dict[str, list[Any]] = {name: [] for name in names}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen["coefficients"].append(pl_module.steering.penalty_coefficient.tolist())
        self.seen["train_rows"].append(batch.rows.tolist())

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen["penalties"].append(outputs["penalty"].tolist())
        self.seen["rows"].append(int(outputs["penalty_rows"]))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.seen["held_out"].clear()
        pl_module.seeds["ema"].clear()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx == 0:
            self.seen["held_out"] += batch.rows.tolist()


def fit(case: Case, ranks: int, folder: Path) -> dict[str, Any]:
    """Return what a fit on so many ranks did and came to; the global batch is the same for any number."""
    torch.manual_seed(0)
    schedule = VariancePreserving(torch.cos(torch.linspace(0.02, 1.5, 100)) ** 2)
    guard = [KLFromPretrained(case.kappa)] if case.kappa else []
    network: nn.Module = Told() if case.told else Tiny()
    guidance: dict[str, Any] = {"guidance_scale": 2.0, "null_condition": {"class_labels": 3}} if case.told else {}
    denoiser = Denoiser(network, schedule, sample_shape=(1, 4, 4), **guidance)
    module = Watched(
        denoiser, [TooBright(), BrightRows(tolerance=0.05), *guard],
        case.formulation, max_timestep=case.max_timestep, sampler=Sampler(steps=2), optimizer=case.optimizer,
        condition_dropout=0.3 if case.told else 0.0, guided_penalty=case.told,
    )  # fmt: skip
    module.watch(case.every_other)
    module.steering.multiplier.fill_(case.multiplier)
    module.steering.augmentation.fill_(case.augmentation)
    loading: dict[str, Any] = {"batch_size": GLOBAL_BATCH, "eval_batch_size": 2, "val_samples": SEEDS}
    loading |= {"conditions": Labels(3)} if case.told else {}
    data: DiffusionDataModule = Data(**loading)
    if case.generated:
        sampler = Sampler(steps=2)
        data = GeneratedDataModule(TRAIN, HELD_OUT, sampler, cache_dir=str(folder / f"{ranks}"), **loading)
    watch = Watch()
    steering = Scheduler(**{"growth_factor": 1.5, "every_n_steps": 2, "stop_below": 0.001, **case.scheduler})
    strategy: Any = "fully_sharded" if case.sharded else DDPStrategy(timeout=timedelta(minutes=4))
    trainer = Trainer(
        accelerator="cpu", devices=ranks, max_steps=STEPS, precision=case.precision, default_root_dir=folder,
        accumulate_grad_batches=case.accumulate, callbacks=[watch, steering],
        strategy=strategy if ranks > 1 else "auto",
        logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return {
        "steps": trainer.global_step,
        "weights": {k: whole(v) for k, v in module.denoiser.network.state_dict().items()},
        "ema": {k: whole(v) for k, v in module.networks.ema.state_dict().items()},
        "steered_by": steering.steered_by,
        "own_rows": module.loss.own_rows,
        "seeds": module.seeds,
        "data": data.data[0].clean,
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
        **watch.seen,
    }


def rank_main(rank: int, folder: Path) -> None:
    """Be one of two ranks, as a launcher would start it."""
    torch.save({name: fit(case, 2, folder) for name, case in CASES.items()}, folder / f"{rank}.pt")


if __name__ == "__main__":
    from launch import start

    start(rank_main)
