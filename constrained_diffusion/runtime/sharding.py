"""Networks whose weights are shared out over ranks (torch's `fully_shard`), and put together again."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh


def shard(network: nn.Module, mesh: DeviceMesh, block: int) -> None:
    """Share out the weights of `network` over the ranks of `mesh`, in place; `block` as in `FullySharded`."""
    from torch.distributed.fsdp import fully_shard

    # `children` leaves out the Nones that diffusers puts into its lists
    blocks = [m for parent in network.modules() if isinstance(parent, nn.ModuleList) for m in parent.children()]
    large = [m for m in blocks if sum(p.numel() for p in m.parameters()) >= max(block, 1)]
    for module in [*reversed(large), network]:  # inner ones first; `modules` names outer ones first
        # The outermost one would by default stay whole after a forward pass, the frozen copy, never trained, for good.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def whole(value: Any) -> Any:
    """Return a tensor that is shared out as a whole one, anything else as it is; all ranks must call it."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor().detach() if isinstance(value, DTensor) else value


def share(value: Any, like: Any) -> Any:
    """Return `value` shared out as `like` is, where it has its shape; all ranks must call it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def local(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return this rank's parts of `parameters`, detached; they share memory."""
    from torch.distributed.tensor import DTensor

    return [p.to_local().detach() if isinstance(p, DTensor) else p.detach() for p in parameters]


def meta_copy(network: nn.Module) -> nn.Module:
    """Return a copy of `network` whose parameters have no memory; to be taken before `shard`."""
    bones = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in network.parameters()}
    return copy.deepcopy(network, bones)


def gather_full(bones: nn.Module, sharded: nn.Module) -> nn.Module:
    """Return a whole network, a copy of `bones` with the weights of `sharded`; all ranks must call it."""
    with torch.inference_mode(False), torch.no_grad():  # Lightning validates in inference mode
        network, state = copy.deepcopy(bones), {name: whole(value) for name, value in sharded.state_dict().items()}
        network.load_state_dict(state, assign=True)
        return network.requires_grad_(False).to(next(iter(state.values())).device)
