"""How each kind of network is called with x_t, t and a condition, and which keyword names it knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from constrained_diffusion.denoisers import packed

Call = Callable[..., Any]

_TEXT, _CLASSES = "encoder_hidden_states", ("num_class_embeds", "class_embed_type")
_TOLD = {  # what transformers of diffusers need, though their signatures have None for it
    "SD3Transformer2DModel": {_TEXT, "pooled_projections"},
    "FluxTransformer2DModel": {_TEXT, "pooled_projections"},
    "PixArtTransformer2DModel": {_TEXT},
    "DiTTransformer2DModel": {"class_labels"},
}


class Names(NamedTuple):
    """The keyword names of a network besides x_t and t."""

    needed: set[str]
    known: list[str] | None  #: None where it takes whatever it is given

    @property
    def hint(self) -> str:
        """What a data module's `conditions` are set to, for a network that needs these names."""
        return "to Labels" if "class_labels" in self.needed else "to Prompts" if _TEXT in self.needed else "accordingly"


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
    known = [p.name for p in named if p.name != "return_dict"]
    if any(config.get(key) for key in _CLASSES):
        needed.add("class_labels")
    elif any(key in config for key in _CLASSES):  # a UNet that was made without classes, whatever its signature says
        known = [name for name in known if name != "class_labels"]
    if packed.is_packed(network) and config.get("guidance_embeds"):
        needed.add("guidance")
    return Names(needed, known if len(named) == len(parameters) else None)
