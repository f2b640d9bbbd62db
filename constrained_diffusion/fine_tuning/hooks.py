"""What `ConstrainedDiffusion` does beyond a line: units, drawing samples, the bank, sharding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from constrained_diffusion.batch import Seeds
from constrained_diffusion.condition import Condition, take
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.calls import names_of
from constrained_diffusion.denoisers.lora_files import LORA_NAME
from constrained_diffusion.denoisers.reading import check_ends, check_reading
from constrained_diffusion.diffusion.normalizer import MeasuredNormalizer, Normalizer
from constrained_diffusion.diffusion.rejection import Rejection, RejectionResult, check_rejection, rejection_sample
from constrained_diffusion.fine_tuning.checkpoint import own_state
from constrained_diffusion.fine_tuning.evaluator import Evaluator
from constrained_diffusion.fine_tuning.loss import PenaltyLoss
from constrained_diffusion.fine_tuning.networks import Networks
from constrained_diffusion.fine_tuning.noising import PerToken
from constrained_diffusion.runtime.conditions import Conditions, asked
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows
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


def check_settings(
    loss: PenaltyLoss, noise_levels: PerToken | None, condition_dropout: float, rejection: Rejection | None
) -> None:
    """Raise ValueError where a setting is out of range, or two do not go together; see `ConstrainedDiffusion`."""
    if noise_levels is not None and loss.formulation.conditioned:
        raise ValueError("noise_levels cannot differ within a sample in 'conditioned_algorithm1'; leave them out.")
    if not 0 <= condition_dropout <= 1:
        raise ValueError(f"condition_dropout is a share of the rows, in [0, 1]; got {condition_dropout}.")
    if rejection is not None:
        check_rejection(loss.steering.constraints)  # type: ignore[arg-type]


def set_up(evaluator: Evaluator, data: Any, stage: str, condition_dropout: float) -> None:
    """Take the units of the data module `data`, and raise where it does not fit the model; see `Evaluator.check`."""
    denoiser = evaluator.networks.denoiser
    measure_units(denoiser, data, stage)
    shape = getattr(data, "sample_shape", denoiser.data_shape)
    evaluator.check(stage, shape, checked_condition(data, condition_dropout, denoiser))
    if stage == "fit":
        check_rows(denoiser, data)


def check_rows(denoiser: Denoiser, data: Any) -> None:
    """Raise ValueError where the training rows of `data` lack a condition that the network needs."""
    if not isinstance(data, DiffusionDataModule):
        return
    given = {name.partition(".")[0] for name in data.data[0].condition or {}}
    if missing := sorted(names_of(denoiser.network).needed - given):
        raise ValueError(
            f"{type(denoiser.network).__name__} needs {', '.join(missing)}, which the training rows of "
            f"{type(data).__name__} lack (`conditions` are of samples alone): expected rows that say what they show; "
            "choose GeneratedDataModule, or write a data module whose `build` gives TensorRows a condition."
        )


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
    """See `check_ends`, and warn where the pretrained network does not fit its own samples as its config reads it."""
    seeds = range(8 if math.prod(denoiser.sample_shape) <= SMALL else 2)
    check_ends(denoiser, asked(data, seeds[:2]))
    check_reading(denoiser, asked(data, seeds), seeds)


def checked_condition(data: Any, dropout: float, denoiser: Denoiser) -> Condition | None:
    """Return the condition of two samples, from the data module `data`, or None.

    Raises:
        ValueError: rows should be dropped, but no empty condition is known.
    """
    condition = asked(data, [0, 1])
    if dropout and (condition is None or set(condition) - set(denoiser.null(1, torch.device("cpu")))):
        raise ValueError(
            f"condition_dropout is {dropout}, but no empty condition of {', '.join(condition or ()) or 'any'}: "
            "give the denoiser a `null_condition`, such as {class_labels: 10}, and the data module a condition."
        )
    conditions = getattr(data, "conditions", None)
    if isinstance(conditions, Conditions) and condition is not None:
        denoiser.check_labels(conditions.all_different(denoiser).get("class_labels"))
    return condition


def draw(evaluator: Evaluator, trainer: Trainer | None, seeds: Sequence[int], *how: Any, **settings: Any) -> Tensor:
    """Return one sample per seed in the network's space and the trainer's precision; see `Evaluator.encoded_sample`.

    Without `condition`, samples are asked for as the trainer's data module asks for these seeds.
    """
    if settings.get("condition") is None:
        settings["condition"] = asked(getattr(trainer, "datamodule", None), seeds)
    with trainer.precision_plugin.forward_context() if trainer else nullcontext():
        return evaluator.encoded_sample(seeds, *how, **settings)


def drawn(module: Any, batch: Seeds) -> Tensor:
    """Return what `module` draws for `batch`, `(B, *shape)` in the data's units; B = 0 on a rank without seeds."""
    samples: Tensor = module.sample(batch.seeds.tolist(), condition=batch.condition)
    return samples


def predict(module: Any, batch: Seeds, rejection: Rejection | None) -> Tensor | RejectionResult:
    """Return the same; with `rejection` each sample is drawn, of the same condition, until it is feasible."""

    def again(seeds: list[int], rows: list[int]) -> Tensor:
        return drawn(module, Seeds(torch.tensor(seeds), take(batch.condition, rows)))

    if rejection is None:
        return drawn(module, batch)
    if not len(batch.seeds):
        return RejectionResult(drawn(module, batch), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))
    return rejection_sample(again, module.steering.feasible, batch.seeds.tolist(), rejection.max_draws)


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


def prepare(networks: Networks, loss: PenaltyLoss, data: Any) -> None:
    """Make ready for a fit on the data module `data`: rows encoded, the model looked at, the bank filled."""
    encode_rows(networks.denoiser, data, networks.device)
    if loss.steering.names:  # there is a pretrained model, which should be what its config says
        check_own_samples(networks.denoiser, data)
    networks.trained.train()  # pretrained networks arrive in eval mode
    loss.bank = bank(networks, loss, data)


def to_keep(networks: Networks, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds of a module with these networks and this `state`."""
    kept = {"state_dict": own_state(state, networks.given), "denoiser": networks.denoiser_config()}
    return {**kept, "adapted": networks.fingerprint}


def validation_figures(evaluator: Evaluator, trainer: Any) -> dict[str, float]:
    """Return what validation measured of samples; nothing where none were drawn."""
    if len(trainer.num_val_batches) < 2:  # the same on every rank, unlike the number of samples drawn
        return {}
    return evaluator.validation_figures(getattr(trainer.datamodule, "first_eval_seed", 0), str(trainer.precision))


def say_what_is_beneath(denoiser: Denoiser, folder: Path) -> None:
    """Say which earlier adapters those in `folder`, an export, are on top of, where it holds such."""
    earlier = getattr(denoiser, "adapters", [])
    if earlier and (folder / LORA_NAME).is_file():
        rank_zero_info(f"the adapters are on top of {', '.join(earlier)}: load those too, and first.")


def share_out(networks: Networks, trainer: Trainer) -> None:
    """Share the networks out over ranks while `FullySharded` fits.

    Raises:
        ValueError: the strategy shares out nothing, or the networks are shared out since an earlier fit.
    """
    strategy, fitting = trainer.strategy, trainer.state.fn == TrainerFn.FITTING
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
