"""What hooks of `ConstrainedDiffusion` do beyond a line: units, the bank, sharding."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.reading import check_reading
from constrained_diffusion.diffusion.normalizer import MeasuredNormalizer, Normalizer
from constrained_diffusion.fine_tuning.loss import PenaltyLoss
from constrained_diffusion.fine_tuning.networks import Networks
from constrained_diffusion.runtime.data import TensorRows
from constrained_diffusion.runtime.fully_sharded import FullySharded

SMALL = 10_000  #: numbers of a sample, of which eight fit on every device
BANK = 4096  #: at most so many training samples stand for the pretrained model's distribution


@runtime_checkable
class HasMoments(Protocol):
    """A data module that knows the units of its rows."""

    def moments(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel."""


@runtime_checkable
class HasBank(Protocol):
    """A data module whose training set was drawn from the pretrained model."""

    def bank(self, count: int) -> Tensor:
        """Return at most `count` of its samples, `(N, *shape)` in the data's units."""


def measure_units(denoiser: Denoiser, data: Any, stage: str) -> None:
    """Give a `MeasuredNormalizer` the units of the data before a fit; any other has its own."""
    codec = denoiser.codec
    if stage == "fit" and isinstance(codec, MeasuredNormalizer) and isinstance(data, HasMoments):
        codec.measure(*data.moments())


@torch.no_grad()
def encode_rows(denoiser: Denoiser, data: Any, device: torch.device) -> None:
    """Encode the rows of `data` once, before a fit, where they are in memory and the codec is an autoencoder."""
    if isinstance(denoiser.codec, Normalizer) or not hasattr(data, "data"):
        return
    for rows in data.data:
        if isinstance(rows, TensorRows) and rows.latent is None:
            batches = (rows.__getitems__(part.tolist()).clean for part in torch.arange(len(rows)).split(250))
            rows.latent = torch.cat([denoiser.codec.encode(clean.to(device)).cpu() for clean in batches])


def check_own_samples(denoiser: Denoiser, data: Any) -> None:
    """Warn where the pretrained network does not fit its own samples as its config reads it; see `check_reading`."""
    seeds = range(8 if math.prod(denoiser.sample_shape) <= SMALL else 2)
    condition = data.condition(list(seeds)) if hasattr(data, "condition") else None
    check_reading(denoiser, condition, seeds)


def told(data: Any, dropout: float, denoiser: Denoiser) -> dict[str, Tensor] | None:
    """Return what the data module `data` tells the denoiser of two samples, or None.

    Raises:
        ValueError: some rows should be told nothing, and nobody knows how.
    """
    condition = data.condition([0, 1]) if hasattr(data, "condition") else None
    if dropout and (condition is None or set(condition) - set(denoiser.null(1, torch.device("cpu")))):
        raise ValueError(
            f"condition_dropout is {dropout}, but no empty condition of {', '.join(condition or ()) or 'any'}: "
            "give the denoiser a `null_condition`, such as {class_labels: 10}, and the data module a condition."
        )
    return condition


def bank(networks: Networks, loss: PenaltyLoss, data: Any) -> tuple[Tensor, Tensor] | None:
    """Return samples of the data module `data`, in network units, and 1.0 where feasible; None if none are needed.

    Raises:
        ValueError: it has no `bank`.
    """
    if not (loss.formulation.conditioned and loss.steering.names):
        return None
    if not isinstance(data, HasBank):
        raise ValueError(
            "the formulation 'conditioned_algorithm1' compares noisy samples with the training set and needs "
            'a DiffusionDataModule; fit with `datamodule=...`, or choose "anchored_algorithm1".'
        )
    clean = data.bank(BANK).to(networks.device, torch.promote_types(networks.dtype, torch.float32))
    feasible = torch.cat([loss.steering.feasible(part) for part in clean.split(256)])
    return torch.cat([networks.denoiser.codec.encode(part) for part in clean.split(256)]), feasible


def share_out(networks: Networks, strategy: Strategy, fitting: bool) -> None:
    """Share the networks out over ranks while `FullySharded` fits.

    Raises:
        ValueError: the strategy shares out nothing, or the networks are shared out since an earlier fit.
    """
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FullySharded):
        raise ValueError(
            "ModelParallelStrategy by itself shares out nothing, and would train each rank by its own rows; choose "
            "the strategy fully_sharded, which is made of it."
        )
    if networks.sharded and not fitting:
        raise ValueError(
            "the weights of this module are shared out over ranks, since its fit: make the module anew and give "
            "the fit's checkpoint, as in `trainer.test(module, ckpt_path=...)`."
        )
    networks.release()
    if isinstance(strategy, FullySharded) and fitting and not networks.sharded:
        networks.share_out(strategy.device_mesh["data_parallel"], strategy.block)
