"""Writing a denoiser to a folder that diffusers, or `PretrainedDenoiser`, opens again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.config import denoiser_config, is_diffusers, schedule_config
from constrained_diffusion.denoisers.loading import CONFIG_NAME, WEIGHTS_NAME
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule

_OURS = {CONFIG_NAME, WEIGHTS_NAME, "model_index.json", "config.json", "unet", "scheduler"}


def export(denoiser: Denoiser, folder: str | Path, network: nn.Module | None = None) -> Path:
    """Write `denoiser` to `folder` and return it; call it on one rank only.

    A `UNet2DModel` becomes a pipeline that `DDPMPipeline` and `DDIMPipeline.from_pretrained` open and sample from
    (their images are right where the normaliser maps [0, 1] to [-1, 1]), another network of diffusers a model folder
    with its scheduler, any other network a safetensors file. A JSON file beside it holds units and sample shape.

    Args:
        denoiser: network, noise schedule and units.
        folder: a new or an empty one, or one that an earlier export wrote, which is replaced.
        network: weights to write in place of the denoiser's own, for example their EMA; of the same class.

    Raises:
        ValueError: the folder holds something else.
    """
    target = Path(folder)
    _refuse_foreign(target)
    partial = target.with_name(f".{target.name}.partial")  # so that a crash leaves no half folder behind
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(denoiser, denoiser.network if network is None else network, partial)
    if target.exists():
        shutil.rmtree(target)
    return partial.rename(target)


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of the names and bytes of all parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(denoiser: Denoiser, network: nn.Module, folder: Path) -> None:
    config = denoiser_config(denoiser)
    if is_diffusers(network):
        _write_diffusers(network, _scheduler_config(denoiser.noise_schedule), folder)
        del config["network"]
        if isinstance(denoiser.noise_schedule, DiffusersSchedule):
            del config["noise_schedule"]  # the scheduler's own file says it
    else:
        weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
        save_file(weights, folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for weights_file in folder.rglob("*.safetensors"):  # which safetensors writes for their owner's eyes only
        shutil.copymode(folder / CONFIG_NAME, weights_file)


def _write_diffusers(network: Any, scheduler_config: dict[str, Any], folder: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    scheduler = DDPMScheduler.from_config(scheduler_config)
    if isinstance(network, UNet2DModel):
        pipeline: Any = DDPMPipeline(unet=network, scheduler=scheduler)
        pipeline.save_pretrained(folder)
    else:
        network.save_pretrained(folder)
        scheduler.save_pretrained(folder / "scheduler")
    for path in folder.rglob("*.json"):  # diffusers notes where weights were read from: a path of this machine
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _scheduler_config(schedule: NoiseSchedule) -> dict[str, Any]:
    if isinstance(schedule, DiffusersSchedule):
        return schedule_config(schedule)
    abar = schedule.alphas_cumprod.double()
    betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
    return {
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "prediction_type": schedule.prediction_type,
    }


def _refuse_foreign(target: Path) -> None:
    if not target.exists():
        return
    held = {entry.name for entry in target.iterdir()} if target.is_dir() else {target.name}
    if held and not (target.is_dir() and CONFIG_NAME in held and held <= _OURS):
        raise ValueError(
            f"'{target}' holds something else already ({sorted(held - _OURS or held)[0]}): expected a new or an empty "
            "folder, or one of an earlier export; give another folder, or empty this one."
        )
