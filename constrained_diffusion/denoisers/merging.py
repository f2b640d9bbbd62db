"""Adapters that a network comes with become part of its weights."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def adapter_layers(network: nn.Module) -> list[tuple[str, Any]]:
    """Return the layers of peft in `network`, each with its name."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")  # whoever added adapters has imported it; it takes seconds
    return [(n, m) for n, m in network.named_modules() if isinstance(m, tuners.BaseTunerLayer)] if tuners else []


def merge_adapters(network: nn.Module) -> nn.Module:
    """Fold the adapters of `network` that are on into its weights, in place, and return it without any LoRA layer."""
    for name, layer in adapter_layers(network):
        if not layer.disable_adapters:
            layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer.get_base_layer())
    for note in ("peft_config", "_hf_peft_config_loaded"):  # of peft and diffusers, by which they know of adapters
        vars(network).pop(note, None)
    return network


def absorb_adapters(network: nn.Module) -> None:
    """Make adapters that `network` came with part of its weights, in place, and let those be trained again."""
    if adapter_layers(network):
        merge_adapters(network).requires_grad_(True)
