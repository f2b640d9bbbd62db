"""Prompts as conditions: a pipeline's own text encoders, and what else its network is conditioned on.

The encoders are diffusers' `encode_prompt` with the defaults of the pipeline's own call. They are no sub-modules of a
denoiser: nothing trains, copies or saves them. They lie on the host and come to the network's device to encode.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from constrained_diffusion.condition import join, moved
from constrained_diffusion.denoisers.families import Family

CACHED = 256  #: how many prompts are remembered; one of SDXL takes 0.6 MB, one of FLUX 8 MB


class TextEncoders:
    """The text encoders of one pipeline, and a memory of what they said.

    Args:
        pipeline: of diffusers, with its tokenizers and text encoders; its other parts may be None.
        family: of its network.
        constant: rows `(1, ...)` by keyword name that are alike for all prompts, see `constants`.
        negative_prompt: what guidance leads away from. Empty, it is what the pipeline itself takes without one: the
            embedding of the empty prompt, or zeros (SDXL base).
    """

    def __init__(self, pipeline: Any, family: Family, constant: dict[str, Tensor], negative_prompt: str = "") -> None:
        self.pipeline, self.family, self.constant, self.negative_prompt = pipeline, family, constant, negative_prompt
        self._encoded: dict[str, dict[str, Tensor]] = {}
        self._null: dict[str, Tensor] | None = None

    def encode(self, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Return the condition of B prompts on `device`, each encoded once, on its own, without gradient.

        Raises:
            ValueError: there is no prompt, or something that is none, or a string in place of a list.
        """
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            got = str(prompts) if not isinstance(prompts, str) else repr(prompts)
            raise ValueError(
                f"encode expects a list of at least one prompt, each a string, got {got[:80]}; write ['a white duck']."
            )
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._encoded]
        known = dict(self._encoded)
        with self._ready(device, bool(fresh)):
            known |= {prompt: self._said(prompt, device, null=False) for prompt in fresh}
            latest = {prompt: known[prompt] for prompt in [*(p for p in known if p not in prompts), *prompts]}
            self._encoded = dict([*latest.items()][-CACHED:])
            return moved(join([known[prompt] for prompt in prompts]), device) or {}

    def null(self, device: torch.device) -> dict[str, Tensor]:
        """Return the condition of the negative prompt, one row."""
        with self._ready(device, self._null is None):
            if self._null is None:
                self._null = self._said(self.negative_prompt, device, null=True)
            return moved(self._null, device) or {}

    @contextmanager
    def _ready(self, device: torch.device, asked: bool) -> Iterator[None]:
        encoders = [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)] if asked else []
        with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not enter autograd later
            for encoder in encoders:
                encoder.to(device)
            try:
                yield
            finally:
                for encoder in encoders:
                    encoder.to("cpu")

    def _said(self, prompt: str, device: torch.device, null: bool) -> dict[str, Tensor]:
        encode, call = (
            inspect.signature(f).parameters for f in (self.pipeline.encode_prompt, type(self.pipeline).__call__)
        )
        settings = {name: call[name].default for name in encode if name in call}
        settings |= {"prompt": prompt, "device": device}
        null = null and "negative_prompt" in encode  # FLUX's guidance is distilled
        if "negative_prompt" in encode:
            settings["do_classifier_free_guidance"] = null
        if null:
            settings |= {"prompt": "", "negative_prompt": prompt or call["negative_prompt"].default}
        found = zip(self.family.results, self.pipeline.encode_prompt(**settings), strict=False)
        said = {name.lstrip("-"): rows.cpu() for name, rows in found if name.startswith("-") == null and name}
        return {**said, **self.constant}


def constants(network: Any, family: Family, pipeline: Any, pixels: tuple[int, ...], scale: float) -> dict[str, Tensor]:
    """Return the rows `(1, ...)` that every sample's condition has.

    Args:
        network: the network.
        family: its family.
        pipeline: the one that its text encoders are in.
        pixels: shape of one picture, `(C, H, W)`.
        scale: of the guidance, for networks that have it as a condition because it was distilled into them.
    """
    height, width = map(float, pixels[-2:])
    found: dict[str, Tensor] = {}
    if family.name == "sdxl":  # original size, corner of the crop, size
        found["added_cond_kwargs.time_ids"] = torch.tensor([[height, width, 0, 0, height, width]])
    if getattr(network, "use_additional_conditions", False):  # PixArt-alpha of 1024 pixels
        found["added_cond_kwargs.resolution"] = torch.tensor([[height, width]])
        found["added_cond_kwargs.aspect_ratio"] = torch.tensor([[height / width]])
    if network.config.get("guidance_embeds"):
        found["guidance"] = torch.tensor([scale])
    if network.config.get("time_cond_proj_dim"):  # of latent consistency models
        found["timestep_cond"] = pipeline.get_guidance_scale_embedding(
            torch.tensor([scale - 1.0]), embedding_dim=network.config["time_cond_proj_dim"]
        )
    return found


def is_told_guidance(network: Any) -> bool:
    """Return whether guidance was distilled into `network`, which has its scale as a condition."""
    config: Any = getattr(network, "config", None) or {}
    return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))
