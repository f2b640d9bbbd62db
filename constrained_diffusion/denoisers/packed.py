"""FLUX's transformer as a network of latents `(B, C, H, W)`: it works on tokens of two by two latents.

| FLUX | code | shape |
|---|---|---|
| tokens | `pack(latents)` | `(B, H/2 * W/2, 4 C)` |
| places of the tokens | `image_ids` | `(H/2 * W/2, 3)`, one coordinate unused |
| places of the text's tokens | zeros | `(L, 3)` |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SIDE = 128  #: of a latent where nobody says it: FLUX draws 1024 pixels by default


def is_packed(network: nn.Module) -> bool:
    """Return whether `network`, sharded or not, is FLUX's transformer."""
    return any(cls.__name__ == "FluxTransformer2DModel" for cls in type(network).__mro__)


def sample_shape(network: nn.Module) -> tuple[int, ...]:
    """Return the shape of one sample as FLUX draws it by default, `(C, 128, 128)`."""
    config: Any = network.config
    return (int(config["in_channels"]) // 4, SIDE, SIDE)


def pack(latents: Tensor) -> Tensor:
    """Return the tokens `(B, H/2 * W/2, 4 C)` of latents `(B, C, H, W)`."""
    rows, channels, height, width = latents.shape
    patches = latents.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(rows, height // 2 * (width // 2), 4 * channels)


def unpack(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Return the latents of `shape` `(B, C, H, W)` that `pack` made `tokens` of."""
    rows, channels, height, width = shape
    patches = tokens.reshape(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(shape)


def image_ids(height: int, width: int, like: Tensor) -> Tensor:
    """Return row and column of each token of latents of `height` and `width`, `(height/2 * width/2, 3)`."""
    rows, columns = (torch.arange(side // 2, device=like.device, dtype=like.dtype) for side in (height, width))
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    return torch.cat([torch.zeros_like(places[:, :1]), places], dim=1)


def call(network: nn.Module, noisy: Tensor, time: Tensor, **told: Any) -> Tensor:
    """Return the output `(B, C, H, W)` of FLUX's transformer for `noisy`, of the same shape, at `time`.

    Raises:
        ValueError: height or width of `noisy` are not even.
    """
    if noisy.ndim != 4 or noisy.shape[-1] % 2 or noisy.shape[-2] % 2:
        raise ValueError(f"FLUX works on latents (B, C, H, W) with even sides, got {tuple(noisy.shape)}.")
    text: Any = told.get("encoder_hidden_states")
    ids = {"img_ids": image_ids(noisy.shape[-2], noisy.shape[-1], noisy), "txt_ids": noisy.new_zeros(text.shape[1], 3)}
    output: Tensor = network(pack(noisy), timestep=time, **told, **ids, return_dict=False)[0]
    return unpack(output, noisy.shape)
