"""`ConstrainedDiffusion`: pretraining without constraints, penalty fine-tuning with them (P eq. 14, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from constrained_diffusion.batch import Batch, Seeds
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.rejection import Rejection, RejectionResult
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.fine_tuning import hooks, noising
from constrained_diffusion.fine_tuning.checkpoint import check_state, read_ema
from constrained_diffusion.fine_tuning.evaluator import Evaluator
from constrained_diffusion.fine_tuning.formulation import Formulation
from constrained_diffusion.fine_tuning.loss import MinSNR, PenaltyLoss
from constrained_diffusion.fine_tuning.networks import Networks, Weights
from constrained_diffusion.fine_tuning.noising import LogitNormal, PerToken
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.fine_tuning.step_log import StepLog
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
        open_from, decode_rows: for "conditioned_algorithm1", and where decoding is dear; see `PenaltyLoss`.
        evaluation: what `validate` and `test` measure on samples; by default g alone.
        sampler, guide: how samples are drawn in evaluation and prediction, and what steers every drawing.
        loss_weight: weights of the diffusion loss by noise level; None: all alike.
        noise_levels, timestep_density: levels that differ from token to token, and how levels are spread; None: evenly.
        ema_decay, lora, gradient_checkpointing, merge_lora: see `Networks` and its `export`; samples are of the EMA.
        max_violation_rate: a fit is feasible where the upper 95 % bound of the share of violations is at most this.
        rejection: let `predict` draw for every seed until its sample satisfies the constraints; None: one draw.
        condition_dropout: the share of training rows with an empty condition, as guidance needs in pretraining.
        guided_penalty: let constraints see the predicted clean sample with guidance, at twice the cost of a step.
        seed, optimizer, lr_scheduler: see `TrainedModule`.

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
        how = formulation, max_timestep, loss_weight, open_from, decode_rows
        self.loss = self.loss_class(Steering(given), denoiser, *how)
        hooks.check_settings(self.loss, noise_levels, condition_dropout, rejection)
        self.networks = Networks(denoiser, ema_decay, lora, bool(given), gradient_checkpointing)
        self.evaluator = Evaluator(self.networks, self.steering, evaluation, sampler, guide)
        self.evaluation, self.guide = self.evaluator.evaluation, guide  # here, so that Lightning moves them
        self.noising = noise_levels, guide, timestep_density, condition_dropout  # as `draw_training` takes them
        self.guided_penalty, self.condition_dropout = guided_penalty and bool(given), condition_dropout
        self.step_log = StepLog()
        self.max_violation_rate, self.rejection, self.merge_lora = max_violation_rate, rejection, merge_lora
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
        """Return one sample per seed, in the data's units; see `hooks.draw`."""
        return self.denoiser.codec.decode(self.encoded_sample(seeds, weights, *how, **settings))

    def encoded_sample(self, seeds: Sequence[int], weights: Weights = "ema", *how: Any, **settings: Any) -> Tensor:
        """Return the same in the network's space."""
        return hooks.draw(self.evaluator, self._trainer, seeds, weights, *how, **settings)

    def configure_model(self) -> None:
        hooks.share_out(self.networks, self.trainer)

    def setup(self, stage: str) -> None:
        hooks.set_up(self.evaluator, getattr(self.trainer, "datamodule", None), stage, self.condition_dropout)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.step_log.start(self.trainer.global_step)
        hooks.prepare(self.networks, self.loss, getattr(self.trainer, "datamodule", None))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        key = self.seed, self.batches_seen
        step = noising.draw_training(batch, self.denoiser, key, place(), self.loss.max_timestep, *self.noising)
        noising.seed_networks(key, self.global_rank)
        self.batches_seen += 1
        # The frozen model first: the trained pass then reuses the memory of its activations.
        frozen = self.networks.predict_frozen(step) if self.loss.needs_frozen else None
        prediction, judged = self.networks.predict_judged(step, self.guided_penalty)
        result = self.loss(step, prediction, frozen, judged)
        self.step_log.note(result.loss, result.terms)
        return {name: value for name, value in result._asdict().items() if value is not None}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.step_log.write(self.trainer)

    def after_step(self) -> None:
        self.networks.update_ema()

    def on_validation_start(self) -> None:
        self.networks.gather()
        self.evaluator.start("val")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loader 0: the held-out loss of the EMA weights, with noise fixed per row. Loader 1: seeds to sample from."""
        if dataloader_idx == 1:
            self.evaluator.tallies["val"].update(hooks.drawn(self, batch), batch.condition)
        elif len(batch.clean):
            self.evaluator.held_out.update(self.held_out_loss(batch), len(batch.clean))

    def held_out_loss(self, batch: Batch) -> Tensor:
        """Return the EMA network's mean error on `batch`, measured and weighted as in training; noise keyed by row."""
        step = noising.draw_held_out(batch, self.denoiser, self.seed)
        return self.loss.held_out(step, self.networks.average_output(step))

    def on_validation_epoch_end(self) -> None:
        self.log("val/diffusion_loss", self.evaluator.held_out.compute(), prog_bar=True)
        self.log_dict(hooks.validation_figures(self.evaluator, self.trainer))

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
        return hooks.predict(self, batch, self.rejection)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint |= hooks.to_keep(self.networks, checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_state(checkpoint, self.state_dict(), self.networks.given, self.networks.fingerprint)
        super().on_load_checkpoint(checkpoint)

    def before_export(self) -> None:
        self.networks.gather()

    def export(self, folder: str | Path, checkpoint: str | Path | None = None) -> None:
        """Write the EMA weights, of `checkpoint` where one is given, to `folder`, and how they were trained."""
        self.networks.export(folder, None if checkpoint is None else read_ema(checkpoint), self.merge_lora)
        hooks.say_what_is_beneath(self.denoiser, Path(folder))
        self.write_training(folder)
