"""`ConstrainedDiffusion`: pretraining without constraints, penalty fine-tuning with them (P eq. 14, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from constrained_diffusion.batch import Batch, Seeds
from constrained_diffusion.condition import take
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.rejection import Rejection, RejectionResult, check_rejection, rejection_sample
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.evaluation import Evaluation, OwnViolations
from constrained_diffusion.fine_tuning import hooks
from constrained_diffusion.fine_tuning.checkpoint import check_state, own_state, read_ema
from constrained_diffusion.fine_tuning.evaluator import Evaluator
from constrained_diffusion.fine_tuning.formulation import Formulation
from constrained_diffusion.fine_tuning.loss import MinSNR, PenaltyLoss
from constrained_diffusion.fine_tuning.networks import Networks, Weights
from constrained_diffusion.fine_tuning.noising import (
    LogitNormal,
    PerToken,
    draw_held_out,
    draw_training,
    seed_networks,
)
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.fine_tuning.trained import TrainedModule
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime.ranks import place


class ConstrainedDiffusion(TrainedModule):
    """Train a denoiser, under constraints if there are any; one trained pass and one backward per step.

    Its parts `networks`, `loss` and `evaluator` work without Lightning. For another loss set `loss_class`.

    Args:
        denoiser: the network with its schedule and units; what it holds at construction is "the pretrained model".
        constraints: one or several; each has its own tolerance and coefficient. None pretrains.
        formulation: "penalty" (eq. 14), "algorithm1", or one that holds to the frozen model: "anchored_penalty",
            "anchored_algorithm1", "conditioned_algorithm1"; see `Formulation`, which may be given too.
        max_timestep: T_phi; the constraints see the rows with t < T_phi. None: all rows.
        open_from: for "conditioned_algorithm1", see `PenaltyLoss`.
        evaluation: what `validate` and `test` measure on samples; by default g alone.
        sampler, guide: how samples are drawn in evaluation and prediction, and what steers every drawing.
        ema_decay: decay of the moving average of the weights, which every sample is drawn from.
        loss_weight: weights of the diffusion loss by noise level; None: all alike.
        noise_levels: levels that differ from token to token; None: one for each row.
        lora: keyword arguments of `peft.LoraConfig`; None trains all weights.
        merge_lora: export the whole network with its adapters merged, rather than the adapters of a pipeline alone.
        max_violation_rate: a fit is feasible where the upper 95 % bound of the share of violations is at most this.
        rejection: let `predict` draw for every seed until its sample satisfies the constraints; None: one draw.
        timestep_density: of the noise levels of training; None: even over the schedule.
        condition_dropout: the share of training rows that are told nothing, as guidance needs in pretraining.
        guided_penalty: let constraints see the predicted clean sample with guidance, at twice the cost of a step.
        decode_rows: at most so many rows of a batch carry the penalty, where decoding them is dear; None: all.
        gradient_checkpointing: see `Networks`; `guided_penalty` on large networks wants it.
        seed: keys the noise and timesteps of training.
        optimizer, lr_scheduler: factories; the learning rate is stepped once per optimiser step.

    Raises:
        ValueError: a setting is out of range, or no constraint can reject samples.
    """

    loss_class: type[PenaltyLoss] = PenaltyLoss

    def __init__(
        self,
        denoiser: Denoiser,
        constraints: Constraint | list[Constraint] | None = None,
        formulation: str | Formulation = "anchored_algorithm1",
        max_timestep: int | None = None,
        open_from: int | None = None,
        evaluation: Evaluation | None = None,
        sampler: Sampler = Sampler(),  # noqa: B008  (frozen)
        guide: Guide | None = None,
        ema_decay: float = 0.98,
        loss_weight: MinSNR | None = None,
        noise_levels: PerToken | None = None,
        lora: dict[str, Any] | None = None,
        merge_lora: bool = False,
        max_violation_rate: float = 0.01,
        rejection: Rejection | None = None,
        timestep_density: LogitNormal | None = None,
        condition_dropout: float = 0.0,
        guided_penalty: bool = False,
        decode_rows: int | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(seed, optimizer, lr_scheduler)
        given = [constraints] if isinstance(constraints, Constraint) else list(constraints or [])
        steering = Steering(given)
        settings = (max_timestep, loss_weight, open_from, decode_rows)
        self.loss = self.loss_class(steering, denoiser, formulation, *settings)
        if noise_levels is not None and self.loss.formulation.conditioned:
            raise ValueError("noise_levels cannot differ within a sample in 'conditioned_algorithm1'; leave them out.")
        if rejection is not None:
            check_rejection(given)
        self.networks = Networks(denoiser, ema_decay, lora, bool(given), gradient_checkpointing)
        evaluation = OwnViolations() if evaluation is None and given else evaluation
        self.evaluation, self.guide = evaluation, guide  # here, so that Lightning moves them
        self.evaluator = Evaluator(self.networks, steering, evaluation, sampler, guide)
        self.noise_levels, self.max_violation_rate, self.rejection = noise_levels, max_violation_rate, rejection
        self.timestep_density, self.condition_dropout = timestep_density, condition_dropout
        self.guided_penalty, self.merge_lora = guided_penalty, merge_lora
        self.strict_loading = False  # a checkpoint leaves judges and classifiers out; `check_state` checks the rest

    @property
    def trained(self) -> nn.Module:
        """The network whose weights the optimiser moves."""
        return self.networks.trained

    @property
    def steering(self) -> Steering:
        """The constraints, and what controllers write."""
        return self.loss.steering

    @property
    def denoiser(self) -> Denoiser:
        """The trained network with its schedule and units."""
        return self.networks.denoiser

    @torch.no_grad()
    def sample(self, seeds: Sequence[int], weights: Weights = "ema", *how: Any, **settings: Any) -> Tensor:
        """Return one sample per seed in the trainer's precision; see `Evaluator.sample`.

        Without `condition`, samples are asked for as the data module asks for these seeds.
        """
        return self.denoiser.codec.decode(self.encoded_sample(seeds, weights, *how, **settings))

    @torch.no_grad()
    def encoded_sample(self, seeds: Sequence[int], weights: Weights = "ema", *how: Any, **settings: Any) -> Tensor:
        """Return the same in the network's space."""
        if settings.get("condition") is None and self._trainer and hasattr(self._trainer, "datamodule"):
            ask = getattr(self._trainer.datamodule, "condition", None)
            settings["condition"] = ask(list(seeds)) if ask else None
        with self._trainer.precision_plugin.forward_context() if self._trainer else nullcontext():
            return self.evaluator.encoded_sample(seeds, weights, *how, **settings)

    def configure_model(self) -> None:
        hooks.share_out(self.networks, self.trainer.strategy, self.trainer.state.fn == TrainerFn.FITTING)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        hooks.measure_units(self.denoiser, data, stage)
        shape = getattr(data, "sample_shape", self.denoiser.data_shape)
        self.evaluator.check(stage, shape, hooks.told(data, self.condition_dropout, self.denoiser))

    def on_train_start(self) -> None:
        self.networks.trained.train()  # pretrained networks arrive in eval mode
        self.loss.bank = hooks.bank(self.networks, self.loss, getattr(self.trainer, "datamodule", None))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        key = self.seed, self.batches_seen
        how = self.noise_levels, self.guide, self.timestep_density, self.condition_dropout
        step = draw_training(batch, self.denoiser, key, place(), self.loss.max_timestep, *how)
        seed_networks(key, self.global_rank)
        self.batches_seen += 1
        # The frozen model first: the trained pass then reuses the memory of its activations.
        frozen = self.networks.predict_frozen(step) if self.loss.needs_frozen else None
        guided = self.guided_penalty and self.steering.names
        prediction, judged = self.networks.predict_guided(step) if guided else (self.networks.predict(step), None)
        result = self.loss(step, prediction, frozen, judged)
        self.log_dict(result.terms, batch_size=len(step.clean))  # not `prog_bar`, which Lightning reads in every step
        return {name: value for name, value in result._asdict().items() if value is not None}

    def after_step(self) -> None:
        self.networks.update_ema()

    def on_validation_start(self) -> None:
        self.networks.gather()
        self.evaluator.start("val")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loader 0: the held-out loss of the EMA weights, with noise fixed per row. Loader 1: seeds to sample from."""
        if dataloader_idx == 0:
            self.evaluator.held_out.update(self.held_out_loss(batch), len(batch.clean))
        else:
            samples = self.sample(batch.seeds.tolist(), condition=batch.condition)
            self.evaluator.tallies["val"].update(samples, batch.condition)

    def held_out_loss(self, batch: Batch) -> Tensor:
        """Return the EMA network's mean error on `batch`, measured and weighted as in training; noise keyed by row."""
        step = draw_held_out(batch, self.denoiser, self.seed)
        return self.loss.held_out(step, self.networks.average_output(step))

    def on_validation_epoch_end(self) -> None:
        self.log("val/diffusion_loss", self.evaluator.held_out.compute(), prog_bar=True)
        if len(self.trainer.num_val_batches) > 1:  # the same on every rank, unlike the number of samples drawn
            first = getattr(self.trainer.datamodule, "first_eval_seed", 0)  # type: ignore[attr-defined]
            self.log_dict(self.evaluator.validation_figures(first, str(self.trainer.precision)))

    def on_validation_end(self) -> None:
        self.networks.release()

    def on_test_start(self) -> None:
        self.evaluator.start("after", *["before"] * bool(self.steering.names))

    def test_step(self, batch: Seeds, batch_idx: int) -> None:
        self.evaluator.test(batch, str(self.trainer.precision))

    def on_test_epoch_end(self) -> None:
        self.evaluator.results = self.evaluator.compute()

    def predict_step(self, batch: Seeds, batch_idx: int) -> Tensor | RejectionResult:
        """Return the samples of the seeds of `batch`, `(B, *shape)`; with `rejection` their `RejectionResult`."""

        def draw(seeds: list[int], rows: list[int]) -> Tensor:
            return self.sample(seeds, condition=take(batch.condition, rows))

        seeds = batch.seeds.tolist()
        if self.rejection is None:
            return draw(seeds, list(range(len(seeds))))
        return rejection_sample(draw, self.steering.feasible, seeds, self.rejection.max_draws)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = own_state(checkpoint["state_dict"], self.networks.given)
        checkpoint["denoiser"] = self.networks.denoiser_config()
        checkpoint["adapted"] = self.networks.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_state(checkpoint, self.state_dict(), self.networks.given, self.networks.fingerprint)
        super().on_load_checkpoint(checkpoint)

    def before_export(self) -> None:
        self.networks.gather()

    def export(self, folder: str | Path, checkpoint: str | Path | None = None) -> None:
        """Write the EMA weights, of `checkpoint` where one is given, to `folder`, and how they were trained."""
        self.networks.export(folder, None if checkpoint is None else read_ema(checkpoint), self.merge_lora)
        self.write_training(folder)
