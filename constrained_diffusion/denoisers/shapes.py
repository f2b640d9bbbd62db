"""The shape of one sample, from a diffusers network's config."""

from __future__ import annotations

from typing import Any

from torch import nn

from constrained_diffusion.denoisers import packed


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
