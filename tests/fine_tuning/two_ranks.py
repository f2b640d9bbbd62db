"""Run by test_distributed.py as a program, `two_ranks.py FOLDER BATCH`: a fit of the tiny model on two gloo ranks."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from constrained_diffusion.callbacks import FitStatus, PenaltyScheduler
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.sampling import Sampler

FORMULATIONS = ("algorithm1", "conditioned_algorithm1")


class Watch(Callback):
    """Notes what every step saw."""

    def __init__(self) -> None:
        self.penalties: list[float] = []
        self.coefficients: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.penalties.append(float(outputs["penalty"]))
        self.coefficients.append(float(pl_module.penalty_coefficient))


def fit_and_test(components: Any, formulation: str, batch: int, ranks: int, folder: Path) -> dict[str, Any]:
    """Return everything that must not depend on the number of ranks; `components` are those of the tests' conftest."""
    module = ConstrainedDiffusion(
        components.make_denoiser(), components.TooBright(), formulation, max_timestep=60, sampler=Sampler(steps=4),
        optimizer=partial(torch.optim.SGD, lr=0.05), max_violation_rate=0.5,
    )  # fmt: skip
    data = components.TinyData(batch_size=batch, val_samples=9, test_samples=9)  # odd: the ranks have unequal shares
    watch, scheduler = Watch(), PenaltyScheduler(initial=0.1, growth_factor=1.5, every_n_steps=2, stop_below=1e-3)
    trainer = Trainer(
        accelerator="cpu", devices=ranks, max_epochs=2, default_root_dir=folder,
        callbacks=[watch, scheduler, FitStatus()],
        strategy=DDPStrategy(timeout=timedelta(minutes=4)) if ranks > 1 else "auto",
        logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    trainer.test(module, datamodule=data, verbose=False)
    return {
        "steps": trainer.global_step,
        "weights": module.denoiser.network.state_dict(),
        "ema": module.ema.state_dict(),
        "penalties": watch.penalties,
        "coefficients": watch.coefficients,
        "logged": logged,
        "results": module.results,
    }


def rank_main(rank: int, folder: Path, batch: int, port: int) -> None:
    """Be one of two ranks, as a launcher would start it."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in place.items()})
    import conftest  # type: ignore[import-not-found]

    found = {name: fit_and_test(conftest, name, batch, 2, folder) for name in FORMULATIONS}
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free = listener.getsockname()[1]
    # forked rather than spawned, which would import torch twice more; no thread has been started here
    arguments = (Path(sys.argv[1]), int(sys.argv[2]), free)
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        rank_main, arguments, nprocs=2, start_method="fork"
    )
