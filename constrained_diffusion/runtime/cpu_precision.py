"""bf16-mixed on CPUs that cannot compute in bfloat16: there it would be ten times slower than single precision."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_info


class SinglePrecisionStandIn(MixedPrecision):
    """Stands in for `bf16-mixed`, whose name it bears, and computes in single precision."""

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


def computes_in_bfloat16() -> bool:
    """Return whether this CPU has instructions that make bfloat16 worth while, by oneDNN's own judgement."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def plugins(config: Any) -> dict[str, Any]:
    """Return the arguments of the Trainer that differ from `config`, its section of a command's config.

    They are none, but where bf16-mixed is asked for on a CPU that does not compute in bfloat16.
    """
    on_cpu = config.accelerator == "cpu" or (config.accelerator == "auto" and not torch.accelerator.is_available())
    if config.precision != "bf16-mixed" or not on_cpu or computes_in_bfloat16():
        return {}
    rank_zero_info("this CPU has no instructions for bfloat16: bf16-mixed computes in single precision here.")
    own = config.plugins or []
    return {"precision": None, "plugins": [*(own if isinstance(own, list) else [own]), SinglePrecisionStandIn()]}
