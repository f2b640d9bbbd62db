"""How each kind of network is called with x_t, t and a condition, and which keyword names it knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from constrained_diffusion.denoisers import packed

Call = Callable[..., Any]

_TOLD = {  # what transformers of diffusers need, though their signatures have None for it
    "SD3Transformer2DModel": {"encoder_hidden_states", "pooled_projections"},
    "FluxTransformer2DModel": {"encoder_hidden_states", "pooled_projections"},
    "PixArtTransformer2DModel": {"encoder_hidden_states"},
    "DiTTransformer2DModel": {"class_labels"},
}


class Names(NamedTuple):
    """The keyword names of a network besides x_t and t."""

    needed: set[str]
    known: list[str] | None  #: None where it takes whatever it is given


def call_of(network: nn.Module) -> Call:
    """Return `(network, noisy, time, **condition) -> output` for networks of the kind of `network`."""
    if packed.is_packed(network):
        return packed.call
    return _by_name if "timestep" in inspect.signature(network.forward).parameters else _by_position


def _by_position(network: nn.Module, noisy: Tensor, time: Tensor, **told: Any) -> Any:
    return network(noisy, time, **told)


def _by_name(network: nn.Module, noisy: Tensor, time: Tensor, **told: Any) -> Any:
    """Call a network of diffusers, whose transformers have other arguments between x_t and t."""
    return network(noisy, timestep=time, **told)


def classes_of(network: nn.Module) -> int | None:
    """Return how many labels `network` knows, that of the empty condition among them; None where it has none."""
    config: Any = getattr(network, "config", None) or {}
    if type(network).__name__ == "DiTTransformer2DModel":
        return int(config["num_embeds_ada_norm"]) + 1
    embedding = getattr(network, "class_embedding", None)
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def names_of(network: nn.Module) -> Names:
    """Return which keyword names `network` needs, and which it knows."""
    parameters = list(inspect.signature(network.forward).parameters.values())
    time = next((place for place, p in enumerate(parameters) if p.name == "timestep"), 1)
    parameters = [p for place, p in enumerate(parameters) if place not in (0, time)]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    config: Any = getattr(network, "config", None) or {}
    needed = {p.name for p in named if p.default is p.empty} | _TOLD.get(type(network).__name__, set())
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        needed.add("class_labels")
    if packed.is_packed(network) and config.get("guidance_embeds"):
        needed.add("guidance")
    return Names(needed, [p.name for p in named] if len(named) == len(parameters) else None)
