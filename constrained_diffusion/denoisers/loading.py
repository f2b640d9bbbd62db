"""Pretrained denoisers: from the zoo, a pipeline or network of diffusers, a single file, or a checkpoint."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.autoencoder import Autoencoder
from constrained_diffusion.denoisers.calls import names_of
from constrained_diffusion.denoisers.config import Parts
from constrained_diffusion.denoisers.hub import download
from constrained_diffusion.denoisers.lora_files import ON_TOP_OF, load_lora
from constrained_diffusion.denoisers.merging import absorb_adapters
from constrained_diffusion.denoisers.origin import Origin
from constrained_diffusion.denoisers.packed import is_packed
from constrained_diffusion.denoisers.prompts import TextEncoders, constants, is_told_guidance
from constrained_diffusion.denoisers.reading import check_reading
from constrained_diffusion.denoisers.sources import CONFIG_NAME, STATE_DICTS, load
from constrained_diffusion.diffusion.codec import Codec
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.runtime import assets, untrusted

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class PretrainedDenoiser(Denoiser):
    """A denoiser with the weights found at `source`; its network is in evaluation mode.

    Of a pipeline it takes the sampler's settings, the autoencoder as its codec, and the text encoders.

    Args:
        source: in this order, a zoo name; a path: a diffusers pipeline folder, a bare diffusers model folder, a folder
            written by `export`, a `.ckpt` of ours (its EMA weights) or of yours, a `.safetensors` file, a state dict
            (`.pt`, `.pth`, `.bin`); or a hub id `owner/name`.
        guidance_scale: of classifier-free guidance in sampling; 1 is the condition alone, at half the cost. A network
            that guidance was distilled into (FLUX.1-dev, latent consistency models) has it as a condition instead.
        negative_prompt: what guidance leads away from, where the model takes prompts. Empty, it is what the pipeline
            itself takes without one: the embedding of the empty prompt, or zeros (SDXL base).
        variant: of the weights' files, for example "fp16"; they are computed with in single precision.
        codec: in place of the source's own: units, or the autoencoder. Without either: images in [0, 1].
        network: for weights whose network is not diffusers': a module of the same class, which takes the weights.
        noise_schedule: in place of the source's own; needed where it has none.
        sample_shape: in place of the source's own.
        null_condition: in place of the source's own.
        adapters: LoRA adapters that the model is to have, a file or a folder of diffusers' kind (see `load_lora`), or
            several; they are merged into its weights.
        prefix: what names of the network's tensors begin with in a checkpoint or state dict of yours, as "model.".
        config: the folder with the configs and tokenizers of the pipeline that a single file in the original layout
            (of Civitai, ComfyUI, ..) holds the weights of; by default the folder beside it that has its name.
        check: try now whether the network is what its config says, as every fit does (see `check_reading`).

    Attributes:
        adapters: those that were merged.
        text: the text encoders, None for a model without prompts.
        origin: the pipeline, None where the source is none; an export has all its parts.
        folder: where the source's files lie if it is a folder and nothing of it was replaced, else None.

    Raises:
        FileNotFoundError: `source` is no zoo name and no path, and cannot be had from the hub.
        ImportError: transformers, which a pipeline's text encoders need, is missing.
        ValueError: the source holds something else, is truncated or from another model or not supported, lacks its text
            encoders, or cannot be guided.
    """

    def __init__(
        self,
        source: str,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        variant: str | None = None,
        codec: Codec | None = None,
        network: nn.Module | None = None,
        noise_schedule: NoiseSchedule | None = None,
        sample_shape: tuple[int, ...] | None = None,
        null_condition: dict[str, Any] | None = None,
        adapters: str | list[str] | None = None,
        prefix: str | None = None,
        config: str | None = None,
        check: bool = False,
    ) -> None:
        path = find(source, variant)
        found = load(path, network, noise_schedule, variant, prefix, sample_shape, config)
        _check_codec(found, codec, source)
        super().__init__(
            found.network.eval(),
            found.noise_schedule,
            codec or found.codec,
            sample_shape or found.sample_shape,
            1.0,
            null_condition or found.null_condition,
        )
        self.pipeline_class = found.pipeline_class
        if found.origin is not None:
            self.origin = Origin(found.origin, variant, noise_schedule is None, codec is None)
        self.adapters = [adapters] if isinstance(adapters, str) else list(adapters or [])
        _check_whole(self.adapters)
        for each in self.adapters:
            load_lora(self.network, each)
            absorb_adapters(self.network)
        self._listen(found, guidance_scale, negative_prompt)
        replaced = any(part is not None for part in (codec, noise_schedule, sample_shape, adapters))
        self.folder: Path | None = path if path.is_dir() and not replaced else None
        if check:
            self._check_reading()

    def _listen(self, found: Parts, scale: float, negative_prompt: str) -> None:
        """Take the text encoders, and guidance, or its scale as a condition where it was distilled."""
        pixels, self.text = self.data_shape, None  # a foreign autoencoder refuses the first
        if found.text is not None and found.family is not None:
            constant = constants(self.network, found.family, found.text, pixels, scale)
            self.text = TextEncoders(found.text, found.family, constant, negative_prompt)
        elif negative_prompt:
            raise ValueError(
                f"negative_prompt is '{negative_prompt[:80]}', but the model takes no prompts: leave it out, or give "
                "a text-to-image pipeline with its text encoders."
            )
        if negative_prompt and (scale == 1 or is_told_guidance(self.network)):
            why = "guidance_scale is 1" if scale == 1 else "this model's guidance was distilled"
            raise ValueError(
                f"negative_prompt is '{negative_prompt[:80]}', but it has no effect, because {why}: expected guidance "
                "with a scale above 1, by a model that can be guided; leave negative_prompt out."
            )
        self.guidance_scale = scale
        self.check_guidance()
        if scale != 1 and _looks_distilled(self.noise_schedule) and not is_told_guidance(self.network):
            warnings.warn(
                f"guidance_scale is {scale}, but the pipeline has the scheduler of a turbo model, which was distilled "
                "without guidance; if it is one, leave guidance_scale at 1.",
                stacklevel=3,
            )
        self._settings = (scale, negative_prompt)
        if is_told_guidance(self.network):
            self.guidance_scale = 1.0

    def _check_reading(self) -> None:
        """See `check_reading`; its samples are asked for nothing."""
        null = self.null(2, self._device)
        if missing := sorted(names_of(self.network).needed - {name.partition(".")[0] for name in null}):
            example = "{class_labels: 10}" if missing == ["class_labels"] else "one for each of them"
            raise ValueError(
                f"check=True draws samples, for which {type(self.network).__name__} needs {', '.join(missing)}: "
                f"expected a null_condition, such as {example}; give it, or leave check out, since every fit checks by "
                "itself."
            )
        check_reading(self, null or None, range(2))

    def check_guidance(self) -> None:
        """Raise ValueError where the guidance scale is out of range, or the model cannot be guided."""
        super().check_guidance()
        if self.guidance_scale != 1 and is_packed(self.network) and not is_told_guidance(self.network):
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}, but this FLUX was distilled without guidance "
                "(guidance_embeds is false): leave guidance_scale at 1, or take a model like FLUX.1-dev."
            )

    @property
    def guidance_settings(self) -> tuple[Any, ...]:
        """What samples depend on besides network, schedule, codec and condition."""
        return self._settings

    @property
    def has_prompts(self) -> bool:
        """Whether it takes prompts, by the text encoders of its pipeline."""
        return self.text is not None

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the condition of `prompts`, one row each, each encoded once and on its own.

        Raises:
            TypeError: the model takes no prompts.
            ValueError: there is no prompt, or a string in place of a list.
        """
        return self.text.encode(prompts, self._device) if self.text else super().encode(prompts)

    def null(self, rows: int, device: torch.device) -> dict[str, Tensor]:
        """Return the condition of the negative prompt for `rows` samples; without prompts, the empty one."""
        if self.text is None or self.null_condition:
            return super().null(rows, device)
        told = self.text.null(device)
        return {name: row.expand(rows, *row.shape[1:]) for name, row in told.items()}

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device


def _looks_distilled(schedule: NoiseSchedule) -> bool:
    """Return whether the scheduler is that of SD-Turbo and SDXL-Turbo."""
    config = schedule.config or {}
    named = config.get("_class_name") == "EulerAncestralDiscreteScheduler"
    return named and config.get("timestep_spacing") == "trailing"


def _check_whole(adapters: Sequence[str]) -> None:
    """Warn where adapters were trained on top of others, which are not given."""
    for each in adapters:
        path = Path(each).expanduser()
        beside = (path.parent if path.is_file() else path) / CONFIG_NAME
        earlier = untrusted.read_json(beside).get(ON_TOP_OF, []) if beside.is_file() else []
        if len(adapters) <= len(earlier):
            warnings.warn(
                f"the adapters in '{each}' were trained on top of {', '.join(map(str, earlier))}: give all of "
                "them, the earlier ones first, or the model is not the one that was fitted.",
                stacklevel=3,
            )


def _check_codec(found: Parts, given: Codec | None, source: str) -> None:
    """Raise ValueError where a latent model has no autoencoder, or is given one of another factor."""
    if found.latent and (given or found.codec) is None:
        raise ValueError(
            f"'{source}' holds the network of a latent model without its autoencoder (and text encoders): expected the "
            "whole pipeline; give the folder that a fit exported (export/), or the autoencoder as "
            "codec=Autoencoder(folder)."
        )
    own = found.codec
    if isinstance(own, Autoencoder) and isinstance(given, Autoencoder) and own.factor != given.factor:
        raise ValueError(
            f"a latent's side stands for {own.factor} pixels in '{source}', but for {given.factor} in the autoencoder "
            "that is given as its codec: expected one of the same factor; give the model's own, or leave codec out."
        )


def find(source: str, variant: str | None = None) -> Path:
    """Return the file or folder that `source` stands for; a hub id is downloaded, or found in the hub's cache.

    Raises:
        FileNotFoundError: there is none.
    """
    source = str(source)
    if source in assets.available():
        return assets.path(source)
    path = Path(source).expanduser()
    if path.exists():
        return path
    if _HUB_ID.fullmatch(source) and path.suffix not in (".ckpt", ".safetensors", *STATE_DICTS):
        return download(source, variant)
    raise FileNotFoundError(
        f"no pretrained denoiser at '{source}': expected a zoo name ({', '.join(assets.available()) or 'none'}), a "
        "diffusers folder, a .ckpt or .safetensors file, or a hub id owner/name."
    )
