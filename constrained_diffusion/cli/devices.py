"""How many devices a command takes: one, unless the config, the command line or a launcher asks for more."""

from __future__ import annotations

import os

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info


def default_devices() -> int:
    """Return 1, or how many processes torchrun or SLURM has started on this node."""
    torchrun, slurm = TorchElasticEnvironment.detect(), SLURMEnvironment.detect()
    name = "LOCAL_WORLD_SIZE" if torchrun else "SLURM_NTASKS_PER_NODE"
    count = os.environ.get(name, "")
    return int(count) if (torchrun or slurm) and count.isdigit() else 1


def report_idle(trainer: Trainer) -> None:
    """Say it where a command takes one of several GPUs."""
    there = torch.cuda.device_count() if trainer.strategy.root_device.type == "cuda" else 1
    if trainer.world_size == 1 and there > 1:
        rank_zero_info(f"one of the {there} GPUs here is used; --trainer.devices=auto takes all of them.")
