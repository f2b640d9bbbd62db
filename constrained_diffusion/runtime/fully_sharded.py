"""FSDP as a strategy of Lightning: ranks share out weights, gradients and optimiser state.

Lightning's own `fsdp` is the older FSDP, which refuses CPU ranks and clipping by norm; its `ModelParallelStrategy` is
the newer one, of which `FullySharded` keeps the launching and changes what a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, StrategyRegistry
from torch import Tensor
from torch.optim import Optimizer

from constrained_diffusion.runtime.sharding import share, whole


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
