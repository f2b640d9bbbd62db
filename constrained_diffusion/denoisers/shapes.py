"""The shape of one sample, from a diffusers network's config, and which shapes its patches allow."""

from __future__ import annotations

from typing import Any

from torch import nn

from constrained_diffusion.denoisers import packed

PATCHED = (  #: networks of diffusers that see their input as patches, without filling up the last ones
    "DiTTransformer2DModel",
    "FluxTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
)


def shape_from_config(network: nn.Module) -> tuple[int, ...]:
    """Return the shape of one sample of `network`, without batch.

    Raises:
        ValueError: its config does not say it, or not all of it.
    """
    config: Any = getattr(network, "config", None)
    name = type(network).__name__
    if packed.is_packed(network):
        return packed.sample_shape(network)
    if config is not None and config.get("sample_shape"):
        return tuple(config["sample_shape"])
    size = None if config is None else config.get("sample_size")
    if config is None or "in_channels" not in config or not size or ("3D" in name and isinstance(size, int)):
        raise ValueError(
            f"sample_shape must be given for a {name}: the shape of one sample without batch, for example (1, 28, 28)."
        )
    sides = tuple(size) if not isinstance(size, int) else (size,) if "1D" in name else (size, size)
    shape = (config["in_channels"], *sides)
    if not all(type(side) is int and side > 0 for side in shape):
        raise ValueError(f"the network's config gives a sample the shape {shape}: expected integers above 0.")
    return shape


def check_sides(network: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise ValueError where samples of `shape`, `(C, height, width)`, cannot be cut into the patches of `network`."""
    config: Any = getattr(network, "config", None) or {}
    name, sides = type(network).__name__, shape[1:]
    if name not in PATCHED:
        return
    patch = 2 if packed.is_packed(network) else int(config.get("patch_size") or 1)
    if any(side % patch for side in sides):
        raise ValueError(
            f"{name} works on patches of {patch} x {patch}: expected a sample_shape whose sides are multiples of "
            f"{patch}, got {shape}; take {(shape[0], *(max(side // patch, 1) * patch for side in sides))}."
        )
    most = patch * int(config.get("pos_embed_max_size") or 0)
    if most and max(sides, default=0) > most:
        raise ValueError(
            f"this {name} knows the places of at most {most} x {most} latents: expected a sample_shape within "
            f"{(shape[0], most, most)}, got {shape}; take a smaller one."
        )
