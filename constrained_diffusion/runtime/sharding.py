"""FSDP for models that need it: weights, gradients and optimiser state shared out over ranks (torch's `fully_shard`).

Lightning's own `fsdp` is the older FSDP, which refuses CPU ranks and clipping by norm; its `ModelParallelStrategy` is
the newer one, of which `FullySharded` keeps the launching and changes what a checkpoint holds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer


class FullySharded(ModelParallelStrategy):
    """`--trainer.strategy=fully_sharded`: every rank holds its share of the networks' weights; all ranks share rows.

    Only fits are sharded: `validate`, `test` and `predict` sample on each rank by itself and have whole networks.
    Checkpoints are what other strategies write, one file with whole tensors, so that a fit goes on, or is tested, on
    any number of ranks.

    Args:
        block: how many parameters a block of a network (a member of a `ModuleList`) must have to be put together,
            used and let go on its own; what is left is put together at once.

    Raises:
        ValueError: when it starts with a `GradScaler` (precision 16-mixed).
    """

    def __init__(self, block: int = 1_000_000) -> None:
        self.block = block
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Loaded before callbacks see the fit, as with other strategies."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands over the optimisers' states, rather than this class reading the file again."""
        return True

    def setup_environment(self) -> None:
        if isinstance(self.precision_plugin, MixedPrecision) and self.precision_plugin.scaler is not None:
            raise ValueError(
                "the strategy fully_sharded cannot train in precision 16-mixed: each rank's scaler would look for "
                "overflows in its own share of the gradients alone; choose bf16-mixed."
            )
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return whole tensors on rank 0, nothing on others; all must call it."""
        assert self.lightning_module is not None
        return self._on_rank_0(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return whole tensors on rank 0, nothing on others; all must call it."""
        state = optimizer.state_dict()
        return {**state, "state": {i: self._on_rank_0(entries) for i, entries in state["state"].items()}}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        given = {name: share(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(given, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            shared = {i: {k: share(v, trained[i]) for k, v in entries.items()} for i, entries in state["state"].items()}
            optimizer.load_state_dict({**state, "state": shared})

    def _on_rank_0(self, values: dict[str, Any]) -> dict[str, Any]:
        kept = {}
        for name, value in values.items():  # one by one: the device has no room for all
            gathered = whole(value)
            if self.is_global_zero:
                kept[name] = gathered.cpu() if isinstance(gathered, Tensor) else gathered
        return kept


StrategyRegistry.register("fully_sharded", FullySharded, description=(FullySharded.__doc__ or "").splitlines()[0])


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
