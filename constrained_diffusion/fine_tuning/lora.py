"""LoRA adapters through peft (extra `lora`): train a few weights, and get the frozen model by switching them off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from constrained_diffusion.runtime.distribution import needs_extra


def add_adapters(network: nn.Module, settings: dict[str, Any]) -> None:
    """Inject LoRA layers into `network` in place; its own weights are frozen.

    Args:
        network: any network.
        settings: keyword arguments of `peft.LoraConfig`, for example `{r: 8, target_modules: [to_q, to_v]}`.

    Raises:
        ImportError: peft is not installed.
        ValueError: no module of the network matches `target_modules`.
    """
    with needs_extra("lora", "LoRA needs peft"):
        from peft import LoraConfig, inject_adapter_in_model
    inject_adapter_in_model(LoraConfig(**settings), network)


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Run `network` as it was before `add_adapters`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapters(network: nn.Module) -> nn.Module:
    """Fold the adapters of `network` into its weights, in place, and return it without any LoRA layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module.get_base_layer())
    return network
