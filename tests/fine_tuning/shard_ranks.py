"""Run by test_networks.py as a program, `shard_ranks.py FOLDER`: fits on two gloo ranks that share out the weights."""

from __future__ import annotations

import copy
import runpy
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from diffusers import UNet2DModel
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from constrained_diffusion.callbacks import (
    DivergedError,
    Export,
    FitStatus,
    LastCheckpoint,
    PenaltyScheduler,
    SampleGrid,
)
from constrained_diffusion.denoisers import Denoiser
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.runtime.fully_sharded import FullySharded
from constrained_diffusion.runtime.sharding import local, shard, whole

PARTS = runpy.run_path(str(Path(__file__).with_name("fit_ranks.py")))
GLOBAL_BATCH, STEPS, HALF = 8, 8, 4  # an epoch has 4 steps
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAPTERS = {"r": 2, "target_modules": r".*layers\.[01]"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.register_buffer("scale", torch.full((), 0.5), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        inner: Tensor = self.layers[1](nn.functional.silu(self.layers[0](hidden)))
        return hidden + self.scale * inner


class Network(nn.Module):
    """Blocks within blocks, as UNets have them."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.first, self.last = nn.Linear(1, 8), nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        hidden = self.first(noisy) + self.time(timesteps[:, None].to(noisy.dtype) / 100)[..., None, None]
        for block in self.blocks:
            hidden = block(hidden)
        output: Tensor = self.last(nn.functional.silu(hidden))
        return output


def make(lora: bool = False, cls: Any = ConstrainedDiffusion) -> ConstrainedDiffusion:
    torch.manual_seed(0)
    schedule = VariancePreserving(torch.cos(torch.linspace(0.02, 1.5, 100)) ** 2)
    module: ConstrainedDiffusion = cls(
        Denoiser(Network(), schedule, sample_shape=(1, 4, 4)), PARTS["TooBright"](), "anchored_penalty",
        max_timestep=60, sampler=Sampler(steps=2), ema_decay=0.7, optimizer=SGD, lora=ADAPTERS if lora else None,
    )  # fmt: skip
    return module


class Held(Callback):
    """Notes how many weights and how much momentum this rank holds after a step."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        networks = {
            "trained": pl_module.denoiser.network,
            "ema": pl_module.networks.ema,
            "pretrained": pl_module.networks.pretrained,
        }
        parts = {name: network.parameters() for name, network in networks.items()}
        parts["momentum"] = [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()]
        self.numbers = {name: sum(part.numel() for part in local(tensors)) for name, tensors in parts.items()}


def trainer_for(folder: Path, ranks: int, steps: int, *callbacks: Callback, **settings: Any) -> Trainer:
    given = {"accelerator": "cpu", "strategy": FullySharded(block=500) if ranks > 1 else "auto", **settings}
    return Trainer(
        devices=ranks, max_steps=steps, default_root_dir=folder, callbacks=list(callbacks), gradient_clip_val=0.1,
        logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **given,
    )  # fmt: skip


def fit(
    folder: Path, ranks: int, steps: int, checkpoint: Path | None = None, lora: bool = False, **settings: Any
) -> dict[str, Any]:
    """Fit with the callbacks of the command line; `folder/checkpoints/last.ckpt` and `folder/export` are left."""
    module, held = make(lora), Held()
    steering = PenaltyScheduler(initial=1.0, growth_factor=1.5, every_n_steps=2, stop_below=0.0)
    grid = SampleGrid(samples=3, columns=3)
    callbacks = (held, steering, FitStatus(), LastCheckpoint(every_n_seconds=0), Export(), grid)
    trainer = trainer_for(folder, ranks, steps, *callbacks, **settings)
    data = PARTS["Data"](batch_size=GLOBAL_BATCH, eval_batch_size=2, val_samples=5)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return {
        "weights": {k: whole(v) for k, v in module.denoiser.network.state_dict().items()},
        "ema": {k: whole(v) for k, v in module.networks.ema.state_dict().items()},
        "coefficient": module.steering.penalty_coefficient,
        "metrics": {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
        "held": held.numbers,
    }


class BrokenOnOneRank(ConstrainedDiffusion):
    """The step makes one weight infinite, which is in one rank's share."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.global_rank == 1:
            local([self.denoiser.network.get_parameter("first.weight").grad])[0].view(-1)[-1] = float("inf")


def diverge(folder: Path) -> str:
    data = PARTS["Data"](batch_size=GLOBAL_BATCH, eval_batch_size=2)
    folder.mkdir(exist_ok=True)
    trainer = trainer_for(folder, 2, 1, FitStatus())
    trainer.gradient_clip_val = None  # it would spread the infinity
    try:
        trainer.fit(make(cls=BrokenOnOneRank), datamodule=data)
    except DivergedError as error:
        return str(error)
    return "not noticed"


def unet_differs() -> dict[str, float]:
    """By how much a UNet of diffusers, each of its blocks on its own, differs from the one that is not shared out."""
    torch.manual_seed(0)
    plain = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    shared = copy.deepcopy(plain)
    shard(shared, init_device_mesh("cpu", (2,)), block=1)
    outputs = [network(torch.ones(2, 1, 8, 8), torch.tensor([3, 30])).sample for network in (plain, shared)]
    for output in outputs:
        output.square().sum().backward()
    pairs = zip(plain.parameters(), shared.parameters(), strict=True)
    gradients = [float((whole(theirs.grad) - ours.grad).abs().max()) for ours, theirs in pairs]  # type: ignore[operator]
    return {"output": float((outputs[0] - outputs[1]).abs().max()), "gradients": max(gradients)}


def rank_main(rank: int, folder: Path) -> None:
    """Be one of two ranks, as a launcher would start it."""
    first, half = fit(folder / "first", 2, HALF), folder / "half.ckpt"
    if rank == 0:
        shutil.copy(folder / "first" / "checkpoints" / "last.ckpt", half)
    torch.distributed.barrier()
    found = {
        "first": first,
        "continued": fit(folder / "run", 2, STEPS, half),
        "finished": fit(folder / "finished", 2, HALF, half),
        "continued plain": fit(folder / "from plain", 2, STEPS, folder / "plain.ckpt"),
        "lora": fit(folder / "lora", 2, HALF, lora=True),
        "bf16": fit(folder / "bf16", 2, HALF, precision="bf16-mixed"),
        "unet": unet_differs(),
        "diverged": diverge(folder / "diverged"),
    }
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    from launch import start

    start(rank_main)
