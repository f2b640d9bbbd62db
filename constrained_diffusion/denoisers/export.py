"""Writing a denoiser to a folder that diffusers, or `PretrainedDenoiser`, opens again."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.autoencoder import Autoencoder
from constrained_diffusion.denoisers.config import denoiser_config, is_diffusers
from constrained_diffusion.denoisers.lora_files import LORA_NAME, ON_TOP_OF, save_lora
from constrained_diffusion.denoisers.merging import adapter_layers, merge_adapters
from constrained_diffusion.denoisers.origin import Origin, copy_parts, place_of
from constrained_diffusion.denoisers.pipelines import AUTOENCODERS, COMPONENTS
from constrained_diffusion.denoisers.schedule import DiffusersSchedule, scheduler_config
from constrained_diffusion.denoisers.sources import CONFIG_NAME, WEIGHTS_NAME
from constrained_diffusion.runtime import untrusted

_OURS = {
    CONFIG_NAME,
    WEIGHTS_NAME,
    LORA_NAME,
    "model_index.json",
    "config.json",
    "unet",
    "transformer",
    "vae",
    "scheduler",
}


def export(denoiser: Denoiser, folder: str | Path, network: nn.Module | None = None) -> Path:
    """Write `denoiser` to `folder` and return it; call it on one rank only.

    A `UNet2DModel` becomes a pipeline that `DDPMPipeline` and `DDIMPipeline.from_pretrained` open and sample from
    (their images are right where the normaliser maps [0, 1] to [-1, 1]), another network of diffusers a model folder
    with its scheduler, any other network a safetensors file. A denoiser that was read from a pipeline becomes one of
    the same class again, with all its other parts. A JSON file beside it holds units and sample shape.

    Args:
        denoiser: network, noise schedule and units.
        folder: a new or an empty one, or one that an earlier export wrote, which is replaced.
        network: weights to write in place of the denoiser's own, for example their EMA; of the same class.

    Raises:
        ValueError: the folder holds something else.
    """
    with written(folder) as partial:
        _write(denoiser, denoiser.network if network is None else network, partial)
    return Path(folder)


def export_lora(
    network: nn.Module,
    folder: str | Path,
    pipeline_class: str,
    state: Mapping[str, Tensor] | None = None,
    on_top_of: Sequence[str] = (),
) -> None:
    """Write the adapters of `network` to `folder` as `save_lora` does, and beside them what pipeline takes them.

    `on_top_of` names earlier adapters, without which these are not the model that was fitted.
    """
    with written(folder) as partial:
        save_lora(network, partial, pipeline_class, state)
        facts: dict[str, Any] = {"pipeline_class": pipeline_class, "adapters": LORA_NAME}
        facts |= {"network": {"class": type(network).__name__}}
        facts |= {ON_TOP_OF: list(on_top_of)} if on_top_of else {}
        (partial / CONFIG_NAME).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@contextmanager
def written(folder: str | Path) -> Iterator[Path]:
    """Give a folder to write to, which becomes `folder` when all is written: a crash leaves no half folder behind.

    Raises:
        ValueError: the folder holds something else than an earlier export.
    """
    target = Path(folder)
    _refuse_foreign(target)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for weights_file in partial.rglob("*.safetensors"):  # which safetensors writes for their owner's eyes only
        shutil.copymode(partial / CONFIG_NAME, weights_file)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of the names and bytes of all parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(denoiser: Denoiser, network: nn.Module, folder: Path) -> None:
    config = denoiser_config(denoiser)
    if adapter_layers(network):
        network = merge_adapters(copy.deepcopy(network))
    if is_diffusers(network):
        if denoiser.origin is None:
            latent = isinstance(denoiser.codec, Autoencoder)
            _write_diffusers(network, _scheduler(denoiser), folder, latent)
        else:
            _write_pipeline(denoiser, denoiser.origin, network, folder)
        del config["network"]
        if isinstance(denoiser.noise_schedule, DiffusersSchedule):
            scheduler = config.pop("noise_schedule")  # the scheduler's own file says it
            if "_sampler_settings" in scheduler:  # but how ours samples, if no pipeline said so
                config["sampler_settings"] = scheduler["_sampler_settings"]
    else:
        weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
        save_file(weights, folder / WEIGHTS_NAME)
    if isinstance(denoiser.codec, Autoencoder) and denoiser.origin is None:
        denoiser.codec.network.save_pretrained(folder / "vae")
    _forget_paths(folder)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _scheduler(denoiser: Denoiser) -> Any:
    """Return the scheduler of diffusers that samples as the denoiser's schedule does."""
    import diffusers

    config = scheduler_config(denoiser.noise_schedule)
    cls: Any = getattr(diffusers, config["_class_name"])
    return cls.from_config({key: value for key, value in config.items() if not key.startswith("_")})


def _write_pipeline(denoiser: Denoiser, origin: Origin, network: Any, folder: Path) -> None:
    written = {place_of(COMPONENTS, origin): network}
    if not origin.own_schedule:
        written["scheduler"] = _scheduler(denoiser)
    if not origin.own_autoencoder and isinstance(denoiser.codec, Autoencoder):
        written[place_of(AUTOENCODERS, origin)] = denoiser.codec.network
    for name, part in written.items():
        part.save_pretrained(folder / name)
    copy_parts(origin, folder, written)


def _write_diffusers(network: Any, scheduler: Any, folder: Path, latent: bool) -> None:
    from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel

    pipelines: dict[str, Any] = {"DDPMScheduler": DDPMPipeline, "DDIMScheduler": DDIMPipeline}
    cls = pipelines.get(type(scheduler).__name__)
    if isinstance(network, UNet2DModel) and not latent and cls is not None:
        cls(unet=network, scheduler=scheduler).save_pretrained(folder)
    elif latent:
        network.save_pretrained(folder / ("unet" if "UNet" in type(network).__name__ else "transformer"))
        scheduler.save_pretrained(folder / "scheduler")
    else:
        network.save_pretrained(folder)
        scheduler.save_pretrained(folder / "scheduler")


def _forget_paths(folder: Path) -> None:
    for path in folder.rglob("*.json"):  # diffusers notes where weights were read from: a path of this machine
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _refuse_foreign(target: Path) -> None:
    if not target.exists():
        return
    held = {entry.name for entry in target.iterdir()} if target.is_dir() else {target.name}
    index = target / "model_index.json"
    ours = _OURS | (untrusted.read_json(index).keys() if index.is_file() else set())
    if held and not (target.is_dir() and CONFIG_NAME in held and held <= ours):
        raise ValueError(
            f"'{target}' holds something else already ({sorted(held - ours or held)[0]}): expected a new or an empty "
            "folder, or one of an earlier export; give another folder, or empty this one."
        )
