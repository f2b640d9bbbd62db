"""LoRA adapters through peft (extra `lora`): train a few weights, and get the frozen model by switching them off.

Adapters that a network comes with are part of the frozen model: they are merged into its weights before ours are added,
so that "off" means the model as it was given.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from constrained_diffusion.denoisers.merging import adapter_layers
from constrained_diffusion.runtime.distribution import needs_extra

STARTS = (True, False, "gaussian", "orthogonal")  #: starts of adapters that leave the weights beside them as they are
SAMPLED = 1024  #: at most so many values of each tensor are in a fingerprint: one of 10^10 weights takes no time


def add_adapters(network: nn.Module, settings: dict[str, Any]) -> None:
    """Inject LoRA layers into `network` in place; its own weights are frozen.

    Args:
        network: any network without adapters.
        settings: keyword arguments of `peft.LoraConfig`, for example `{r: 8, target_modules: [to_q, to_v]}`.

    Raises:
        ImportError: peft is not installed.
        ValueError: no module of the network matches `target_modules`, or the settings train or change weights beside
            the adapters, so that the network without them would not be the frozen model.
    """
    with needs_extra("lora", "LoRA needs peft"):
        from peft import LoraConfig, inject_adapter_in_model
    if (start := settings.get("init_lora_weights", True)) not in STARTS:
        raise ValueError(
            f"init_lora_weights is {start!r}, which changes the weights beside the adapters, but the model without "
            f"them must stay as it was given: choose one of {', '.join(map(repr, STARTS))}."
        )
    config = LoraConfig(**settings)
    _check_targets(network, config.target_modules)
    inject_adapter_in_model(config, network)
    adapters = adapter_names(network)
    beside = [name for name, p in network.named_parameters() if p.requires_grad and name not in adapters]
    if beside:
        raise ValueError(
            f"the LoRA settings also train {beside[0]}, which switching adapters off would not undo: leave `bias` and "
            "`modules_to_save` out, or train all weights (no `lora`)."
        )


def _check_targets(network: nn.Module, targets: Any) -> None:
    """Raise ValueError where `targets`, a pattern or ends of names, match no module of `network`."""
    if not targets or targets == "all-linear":
        return
    names = [name for name, _ in network.named_modules() if name]
    if isinstance(targets, str):
        found = any(re.fullmatch(targets, name) for name in names)
    else:
        found = any(name == target or name.endswith(f".{target}") for name in names for target in targets)
    if not found:
        layers = [name.rpartition(".")[2] for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        common = [name for name, _ in Counter(name for name in layers if not name.isdigit()).most_common(5)]
        asked = targets if isinstance(targets, str) else ", ".join(sorted(targets))
        raise ValueError(
            f"LoRA's target_modules ({asked[:80]}) match nothing in a {type(network).__name__}: expected names of its "
            f"layers, or ends of them; choose some, such as {', '.join(common) or 'those of linear layers'}."
        )


def adapter_names(network: nn.Module) -> set[str]:
    """Return the names, in the state of `network`, of all that belongs to adapters."""
    names = set()
    for outer, layer in adapter_layers(network):
        names |= {f"{outer}.{name}" for name in layer.state_dict() if not name.startswith("base_layer.")}
    return names


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Run `network` as it was before `add_adapters`."""
    layers = [layer for _, layer in adapter_layers(network)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def fingerprint(network: nn.Module) -> str:
    """Return a hash of the names, shapes and up to `SAMPLED` values of each tensor of `network`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            flat = tensor.detach().reshape(-1)
            digest.update(flat[:: max(1, len(flat) // SAMPLED)].double().cpu().numpy().tobytes())
    return digest.hexdigest()


def shared_copy(network: nn.Module) -> nn.Module:
    """Return a copy of `network` with adapters of its own, in evaluation mode; the frozen weights are the same tensors.

    So the moving average of a model of 10^10 weights takes no more room than its adapters.
    """
    frozen = {id(p): p for p in network.parameters() if not p.requires_grad}
    return copy.deepcopy(network, frozen).requires_grad_(False).eval()
