"""Autoencoders of diffusers as codecs: the network works on latents, all that judges sees pictures.

| paper | code | shape |
|---|---|---|
| E(x), D(z) | `encode`, `decode` | `(B, C, H, W)` to `(B, c, h, w)` and back |
"""

from __future__ import annotations

import copy
import math
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from constrained_diffusion.denoisers.strictly import load_strictly
from constrained_diffusion.diffusion.codec import Codec
from constrained_diffusion.runtime import assets, untrusted

PIECE = 64 * 64  #: so many positions of latents, one picture of Stable Diffusion 1.5, are decoded at a time
CLASSES = ("AutoencoderKL", "VQModel", "AutoencoderTiny", "AutoencoderDC")


class Autoencoder(Codec):
    """A frozen autoencoder between images in [0, 1] and latents, `(E(2x - 1) - shift) * scale`.

    Both are numbers, or one for each channel where the config has the latents' means and deviations.

    Where a gradient is asked for, only the latents are kept for it, and the decoder runs again on the way back.

    Args:
        source: a zoo name, or a folder that a diffusers autoencoder was saved to.
        network: in place of a source, the autoencoder itself, one of AutoencoderKL, VQModel, AutoencoderTiny and
            AutoencoderDC.
        checkpointed: whether the decoder runs again on the way back, or keeps its activations.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds something else or is damaged, or the network is of another class.
    """

    network: Any
    scale: Tensor
    shift: Tensor

    def __init__(self, source: str | None = None, network: nn.Module | None = None, checkpointed: bool = True) -> None:
        super().__init__()
        if (source is None) == (network is None):
            raise ValueError("Autoencoder expects either a source or a network; give one of them.")
        chosen = read(source) if source is not None else network
        if type(chosen).__name__ not in CLASSES:
            raise ValueError(f"Autoencoder expects one of {', '.join(CLASSES)}, got a {type(chosen).__name__}.")
        self.network, self.checkpointed, self.settings = chosen, checkpointed, {"source": source}
        config: Any = self.network.config
        self.register_buffer("scale", torch.tensor(float(config.get("scaling_factor") or 1.0)), persistent=False)
        self.register_buffer("shift", torch.tensor(float(config.get("shift_factor") or 0.0)), persistent=False)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:  # of each channel, in place of one shift for all
            self.scale = self.scale / torch.tensor(std)[:, None, None]
            self.shift = torch.tensor(mean)[:, None, None]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever is asked for."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, data: Tensor) -> Tensor:
        """Map images `(B, C, H, W)` in [0, 1] to latents; of a distribution its mode."""
        encoded = self.network.encode((2 * data - 1).to(self._dtype))
        latents: Any = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else None
        if latents is None:
            latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        result: Tensor = (latents - self.shift) * self.scale
        return result.to(data.dtype)

    def decode(self, encoded: Tensor) -> Tensor:
        """Map latents `(B, c, h, w)` to images `(B, C, H, W)`, black 0 and white 1, not clamped."""
        if not len(encoded):  # rows below T_phi may be none, which attention layers do not take
            return encoded.new_zeros(0, *self.data_shape(tuple(encoded.shape[1:])))
        if not (self.checkpointed and torch.is_grad_enabled() and encoded.requires_grad):
            return self._decode(encoded)

        def decode_again(piece: Tensor) -> Tensor:
            images: Tensor = checkpoint(self._decode, piece, use_reentrant=False, preserve_rng_state=False)
            return images

        # On the way back one piece at a time has its activations.
        pieces = encoded.split(max(1, PIECE // math.prod(encoded.shape[2:])))
        return torch.cat([decode_again(piece) for piece in pieces])

    def _decode(self, encoded: Tensor) -> Tensor:
        config, device = self.network.config, encoded.device.type
        upcast = bool(config.get("force_upcast"))
        if upcast and self._dtype == torch.float16:  # in which SDXL's decoder overflows
            self.network.float()
        overflows = upcast and torch.get_autocast_dtype(device) == torch.float16
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device) and not overflows):
            images: Tensor = self.network.decode((encoded / self.scale + self.shift).to(self._dtype)).sample
        return (images.to(encoded.dtype) + 1) / 2

    @property
    def _dtype(self) -> torch.dtype:
        weight: Tensor = next(self.network.parameters())
        return weight.dtype

    def data_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the image that a latent of `shape` decodes to, without running the decoder.

        Raises:
            ValueError: the latents are not of this autoencoder.
        """
        config: Any = self.network.config
        channels = config.get("vq_embed_dim") or config.get("latent_channels")
        if len(shape) != 3 or (channels and shape[0] != channels):
            raise ValueError(
                f"the autoencoder makes latents of {channels} channels, but the denoiser works on {shape}: expected "
                "the autoencoder that the model was trained with."
            )
        factor = self.factor
        return (config.get("out_channels") or config.get("in_channels") or 3, shape[1] * factor, shape[2] * factor)

    @cached_property
    def factor(self) -> int:
        """How many pixels a latent's side stands for."""
        with torch.no_grad():
            meta = copy.deepcopy(self.network).to("meta")
            channels = self.network.config.get("vq_embed_dim") or self.network.config.get("latent_channels")
            image: Tensor = meta.decode(torch.empty(1, channels, 8, 8, device="meta", dtype=self._dtype)).sample
        return image.shape[-1] // 8


def read(source: str | Path, variant: str | None = None) -> nn.Module:
    """Return the autoencoder in `source`, a zoo name or a folder; its `variant`, such as "fp16", in single precision.

    Raises:
        FileNotFoundError, ValueError: as `Autoencoder`.
    """
    import diffusers

    folder = assets.path(str(source)) if str(source) in assets.available() else Path(source).expanduser()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no autoencoder at '{source}': expected a folder that diffusers saved one to, with a config.json, or a "
            f"zoo name ({', '.join(name for name in assets.available() if 'autoencoder' in name) or 'none'})."
        )
    name = str(untrusted.read_json(folder / "config.json").get("_class_name"))
    if name not in CLASSES:
        raise ValueError(f"'{folder}' holds a {name[:80]}: expected one of {', '.join(CLASSES)}.")
    loaded: nn.Module = load_strictly(getattr(diffusers, name), folder, variant)
    return loaded


def small_autoencoder(channels: int, widths: list[int], latent_channels: int, groups: int = 8) -> nn.Module:
    """Return a new `diffusers.AutoencoderKL` without attention, which halves the sides at every width but the last.

    Args:
        channels: of the images.
        widths: channels of its levels, from the image inwards; each divisible by `groups`.
        latent_channels: of the latents.
        groups: of its normalisation.
    """
    from diffusers import AutoencoderKL

    cls: Any = AutoencoderKL
    network: nn.Module = cls(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=latent_channels,
        norm_num_groups=groups,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    return network
