"""The networks of a fit: trained, averaged and frozen; how the average moves, and how ranks share all three out."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.config import denoiser_config
from constrained_diffusion.runtime.sharding import FullySharded, gather_full, local, meta_copy, shard


class DiffusionNetworks(LightningModule):
    """The trained network, its EMA and the frozen copy; shared out over ranks, all alike, while `FullySharded` fits.

    A step that float16's `GradScaler` leaves out, because its gradients overflowed, is none: the EMA stays, and
    `step_skipped` tells callbacks. (An optimiser with `fused=True` leaves steps out by itself, where nothing sees it.)
    A loss that overflowed is another matter, which no other scale mends: `FitStatus` ends the fit as diverged.

    Every call of a network that is shared out is one of all ranks together. In validation ranks draw different
    numbers of samples, so it has a whole copy of the EMA; so has `export` after the last step.
    """

    denoiser: Denoiser
    ema: nn.Module
    ema_decay: float
    step_skipped = False  #: whether the last optimiser step was left out
    _frozen: tuple[nn.Module, ...]
    unsharded_config: dict[str, Any] | None = None
    _meta_copy: tuple[
        nn.Module, ...
    ] = ()  # the EMA without its weights; in a tuple, so that it is no part of the module
    _full_copy: tuple[nn.Module, ...] = ()  # with them

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        made: list[bool] = []
        handle = optimizer.optimizer.register_step_post_hook(lambda *_: made.append(True))
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:
            handle.remove()
        self.step_skipped = not made
        if made:
            self.update_ema()

    def update_ema(self) -> None:
        """Move the EMA weights one step towards the trained ones; called after every optimiser step."""
        update = get_ema_multi_avg_fn(self.ema_decay)
        averages, trained = local(self.ema.parameters()), local(self.denoiser.network.parameters())
        update(averages, [new.to(old.dtype) for old, new in zip(averages, trained, strict=True)], 0)

    @property
    def sharded(self) -> bool:
        """Whether each rank holds its share of the weights alone."""
        return bool(self._meta_copy)

    @property
    def averaged(self) -> nn.Module:
        """The network with the EMA weights, whole on each rank."""
        if not self.sharded:
            return self.ema
        if not self._full_copy:
            raise RuntimeError(
                "the EMA weights are shared out over ranks (strategy fully_sharded), which put them together for "
                "validation and at the end of training alone; draw samples there, or fit with strategy ddp."
            )
        return self._full_copy[0]

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FullySharded):
            raise ValueError(
                "ModelParallelStrategy by itself shares out nothing, and would train each rank by its own rows; choose "
                "the strategy fully_sharded, which is made of it."
            )
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if self.sharded and not fitting:
            raise ValueError(
                "the weights of this module are shared out over ranks, since its fit: make the module anew and give "
                "the fit's checkpoint, as in `trainer.test(module, ckpt_path=...)`."
            )
        self._full_copy = ()
        if not isinstance(strategy, FullySharded) or self.sharded or not fitting:
            return
        self.unsharded_config = denoiser_config(self.denoiser)  # sharding puts other classes in place of the network's
        self._meta_copy = (meta_copy(self.ema),)
        for network in (self.denoiser.network, self.ema, *self._frozen):
            shard(network, strategy.device_mesh["data_parallel"], strategy.block)

    def on_validation_start(self) -> None:
        self._assemble()

    def on_validation_end(self) -> None:
        self._full_copy = ()

    def before_export(self) -> None:
        """Put the EMA together; all ranks must call it before one of them exports."""
        self._assemble()

    def _assemble(self) -> None:
        self._full_copy = tuple(gather_full(like, self.ema) for like in self._meta_copy)
