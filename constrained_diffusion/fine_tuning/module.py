"""`ConstrainedDiffusion`: pretraining without constraints, penalty fine-tuning with them (P eq. 14, Algorithm 1)."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any, Self

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from constrained_diffusion.batch import Batch
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.normalizer import MeasuredNormalizer
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.diffusion.rejection import check_rejection
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.fine_tuning.conditioning import condition_on_feasible
from constrained_diffusion.fine_tuning.evaluated import NETWORK, TRAINING
from constrained_diffusion.fine_tuning.formulation import formulation as named_formulation
from constrained_diffusion.fine_tuning.lora import adapters_off, add_adapters
from constrained_diffusion.fine_tuning.penalty import (
    balance,
    mean_penalty,
    multiplier_weight,
    penalty_active,
    quadratic_penalty,
    violation,
)
from constrained_diffusion.fine_tuning.records import Measured, below_threshold
from constrained_diffusion.fine_tuning.rejecting import RejectingDiffusion
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.objectives import Constraint, StepRecord
from constrained_diffusion.runtime.data import DiffusionDataModule
from constrained_diffusion.runtime.precision import keep_float32, to_float32, without_autocast
from constrained_diffusion.runtime.randomness import keyed_normal, mix, stratified_timesteps, to_device, token_timesteps
from constrained_diffusion.runtime.ranks import sum_over_ranks

STEERING = ("penalty_coefficient", "stop_below", "multiplier", "augmentation")  #: what callbacks write
BANK = 4096  #: at most so many training samples stand for the pretrained model's distribution


class ConstrainedDiffusion(RejectingDiffusion):
    """Train a denoiser, under constraints if there are any; one trained pass and one backward per step.

    Subclass it for another loss: `diffusion_loss` and `penalty` are the two terms, `training_step` puts them together.

    Args:
        denoiser: the network with its schedule and units; what it holds at construction is "the pretrained model".
        constraints: one or several; each has its own tolerance and coefficient. None pretrains.
        formulation: "penalty" (eq. 14), "algorithm1", and both held to the frozen model on feasible rows:
            "anchored_penalty", "anchored_algorithm1"; "conditioned_algorithm1" holds to the frozen model without what
            is infeasible, and needs a training set that was drawn from it.
        max_timestep: T_phi; the constraints see the rows with t < T_phi. None: all rows.
        open_from: for "conditioned_algorithm1", the timestep from which on a noisy sample may still become anything;
            half the schedule by default.
        evaluation: what `validate` and `test` measure on samples.
        sampler: the sampler of evaluation and prediction.
        guide: what steers every sampling of this model, in evaluation, prediction and for generated training sets.
        ema_decay: decay of the moving average of the weights, which every sample is drawn from.
        snr_gamma: gamma of the min-SNR loss weight; None: constant weight.
        snr_floor: the least weight on the clean sample, with snr_gamma; 0 for min-SNR itself.
        token_noise: the share of rows in which tokens of `(B, L, ..)` have noise levels of their own.
        lora: keyword arguments of `peft.LoraConfig`; None trains all weights.
        max_violation_rate: a fit is feasible where the upper 95 % bound of the share of samples with g > tolerance is
            at most this.
        recompute: sample the pretrained model again in `test`, even where its samples are stored beside the weights.
        reject_violations: let `predict` draw for every seed until its sample satisfies the constraints by their own g,
            (`callbacks.Certificate` certifies the samples).
        max_draws: after so many draws without a feasible sample `predict` ends as infeasible.
        seed: keys the noise and timesteps of training.
        optimizer, lr_scheduler: factories; the learning rate is stepped once per optimiser step.

    Raises:
        ValueError: T_phi outside the schedule, an unknown formulation or loss, a decay outside [0, 1), or samples that
            no constraint can reject.
    """

    penalty_coefficient: Tensor
    stop_below: Tensor
    multiplier: Tensor
    augmentation: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        constraints: Constraint | list[Constraint] | None = None,
        formulation: str = "anchored_algorithm1",
        max_timestep: int | None = None,
        open_from: int | None = None,
        evaluation: Evaluation | None = None,
        sampler: Sampler = Sampler(),  # noqa: B008  (frozen)
        guide: Guide | None = None,
        ema_decay: float = 0.98,
        snr_gamma: float | None = None,
        snr_floor: float = 0.0,
        token_noise: float = 0.0,
        lora: dict[str, Any] | None = None,
        max_violation_rate: float = 0.01,
        recompute: bool = False,
        reject_violations: bool = False,
        max_draws: int = 100,
        seed: int = 0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        given = [constraints] if isinstance(constraints, Constraint) else list(constraints or [])
        shared = denoiser, given, evaluation, sampler, max_violation_rate, seed
        super().__init__(*shared, keep_pretrained=not lora, recompute=recompute, guide=guide)
        total = denoiser.noise_schedule.num_timesteps
        self.formulation, self.token_noise = named_formulation(formulation), token_noise
        if max_timestep is not None and not 1 <= max_timestep <= total:
            raise ValueError(
                f"max_timestep (T_phi) must lie in 1 .. {total}, the length of the schedule; got {max_timestep}."
            )
        if not 0 <= token_noise <= 1 or (token_noise and self.formulation.conditioned):
            raise ValueError(
                f"token_noise is a share in [0, 1], and 0 for 'conditioned_algorithm1'; got {token_noise}."
            )
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}.")
        if reject_violations:
            check_rejection(given, max_draws)
        self.reject_violations, self.max_draws = reject_violations, max_draws
        self.max_timestep = max_timestep or total
        self.open_from = total // 2 if open_from is None else open_from
        self.snr_gamma, self.snr_floor, self.lora = snr_gamma, snr_floor, lora
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        for name in STEERING:
            self.register_buffer(name, torch.full((len(given),), float(name == "penalty_coefficient")))
        if lora:
            add_adapters(denoiser.network, lora)
        self.ema = copy.deepcopy(denoiser.network).requires_grad_(False).eval()
        self.ema_decay = ema_decay
        self.batches_seen = 0

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        steering = {name: getattr(self, name) for name in STEERING}
        super()._apply(fn, recurse)
        for name, value in steering.items():  # half precision would round small growth of a multiplier away
            setattr(self, name, keep_float32(fn)(value))
        return self

    def setup(self, stage: str) -> None:
        normalizer, data = self.denoiser.normalizer, self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and isinstance(normalizer, MeasuredNormalizer) and isinstance(data, DiffusionDataModule):
            normalizer.measure(*data.moments())
        shape = getattr(data, "sample_shape", self.denoiser.sample_shape)
        self.check(stage, shape)

    def check(self, stage: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError where samples of `shape` fit not the denoiser or a constraint, or a fit lacks a gradient."""
        self.denoiser.check_data(shape)
        if self.guide is not None:
            self.guide.check_data(shape)
        for constraint in self.constraints:
            constraint.check_data(shape)  # type: ignore[operator]
            if stage == "fit" and not constraint.differentiable:
                raise ValueError(
                    f"fine-tuning needs the gradient of its constraints, but {type(constraint).__name__} is not "
                    "differentiable; optimise the noise instead (`lightning predict` with noise optimisation takes "
                    "black-box objectives), or give a differentiable surrogate."
                )

    def on_train_start(self) -> None:
        self.denoiser.network.train()  # pretrained networks arrive in eval mode
        if self.formulation.conditioned and self.constraints:
            data = getattr(self.trainer, "datamodule", None)
            if not isinstance(data, DiffusionDataModule):
                raise ValueError(
                    "the formulation 'conditioned_algorithm1' compares noisy samples with the training set and needs "
                    'a DiffusionDataModule; fit with `datamodule=...`, or choose "anchored_algorithm1".'
                )
            clean = data.data[0].__getitems__(list(range(min(BANK, len(data.data[0]))))).clean
            clean = clean.to(self.device, torch.promote_types(self.dtype, torch.float32))  # type: ignore[arg-type]
            feasible = torch.cat([self.feasible(part) for part in clean.split(256)])
            self._bank = (self.denoiser.normalizer.normalize(clean), feasible)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        schedule, clean = self.denoiser.noise_schedule, self.denoiser.normalizer.normalize(to_float32(batch.clean))
        rows = range(self.global_rank * len(clean), (self.global_rank + 1) * len(clean))
        key, world = (self.seed, TRAINING, self.batches_seen), self.trainer.world_size
        noise = to_device(keyed_normal([(*key, row) for row in rows], clean.shape[1:]), clean.device).to(clean.dtype)
        drawn = self.seed, self.batches_seen, rows, len(clean) * world, schedule.num_timesteps
        on_host = stratified_timesteps(*drawn, self.max_timestep)
        if self.token_noise:
            on_host = token_timesteps(on_host, clean.shape[1], self.token_noise, *drawn)
        # What networks draw by themselves, such as dropout, is keyed too: a resumed fit needs no generator's state.
        torch.manual_seed(mix(self.seed, NETWORK, self.batches_seen, self.global_rank))
        self.batches_seen += 1
        timesteps = to_device(on_host, clean.device)
        noisy = schedule.add_noise(clean, noise, timesteps)
        if self.guide is not None:
            noisy, timesteps = self.guide.hold(noisy, timesteps, self.denoiser)
        # The frozen model first: the trained pass then reuses the memory of its activations.
        frozen = self._frozen_prediction(noisy, timesteps, batch.condition)
        prediction = self.denoiser.predict(noisy, timesteps, batch.condition)
        loss = self.diffusion_loss(batch, noisy, prediction, frozen, noise, timesteps)
        logs = {"loss/diffusion": loss.detach()}
        # A sum over a row is not finite where anything in the row is not; read only when a loss has gone wrong.
        result = {"loss": loss, "row_sums": prediction.output.detach().flatten(1).sum(1)}
        if self.constraints:
            # T_phi is known on the host: choosing the rows there spares the device a synchronisation.
            highest = on_host.flatten(1).amax(1) if on_host.ndim > 1 else on_host
            below = to_device((highest < self.max_timestep).nonzero().squeeze(1), clean.device)
            record = StepRecord(
                self.denoiser.normalizer.denormalize(prediction.clean),
                noisy,
                timesteps,
                noise,
                prediction.noise,
                None if frozen is None else frozen.noise,
            )
            measured = self.penalty(
                below_threshold(record, below), (noise - prediction.noise).square().flatten(1).mean(1)
            )
            result |= {"loss": loss + measured.loss, "penalty": measured.penalty, "slack": measured.slack}
            result["penalty_rows"] = measured.rows
            if len(measured.each) == len(below):  # a subclass may look at fewer rows
                result["row_sums"] = result["row_sums"].index_add(0, below, measured.each.to(result["row_sums"]))
            for k, name in enumerate(self.constraint_names):
                logs[f"penalty/{name}"] = measured.penalty[k]
                logs[f"violation_rate/{name}"] = measured.violation_rate[k]
                logs[f"slack/{name}"] = measured.slack[k]
                logs[f"penalty_coefficient/{name}"] = self.penalty_coefficient[k].clone()
                logs[f"multiplier/{name}"] = self.multiplier[k].clone()
        logs["loss/total"] = result["loss"].detach()
        self.log_dict(logs, batch_size=len(clean))  # not `prog_bar`, which Lightning reads back in every step
        return {**result, "terms": logs}

    def diffusion_loss(
        self,
        batch: Batch,
        noisy: Tensor,
        prediction: Prediction,
        frozen: Prediction | None,
        noise: Tensor,
        timesteps: Tensor,
    ) -> Tensor:
        """Return L_diff, a scalar: the error on the model's own target, or on the frozen model's output."""
        schedule, clean = self.denoiser.noise_schedule, self.denoiser.normalizer.normalize(to_float32(batch.clean))
        target, weight = schedule.target(clean, noise, timesteps), None
        if self.formulation.conditioned and frozen is not None:
            bank = (*self._bank, batch.rows, self.open_from)
            shift, weight = condition_on_feasible(noisy, timesteps, schedule, *bank)
            target = frozen.output + schedule.from_clean(shift, torch.zeros_like(noisy), timesteps)
        elif self.formulation.anchored and frozen is not None:
            target, weight = frozen.output, self.feasible(batch.clean)
        error = self.errors(prediction.output, target, timesteps).flatten(1).mean(1)
        return error.mean() if weight is None else (error * weight).mean()  # over all rows, the others counting zero

    def errors(self, output: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        each = super().errors(output, target, timesteps)
        if self.snr_gamma is None:
            return each
        weight = self.denoiser.noise_schedule.loss_weight(timesteps, self.snr_gamma, self.snr_floor)
        return each * weight.reshape(*weight.shape, *(1,) * (each.ndim - weight.ndim))

    def penalty(self, record: StepRecord, noise_error: Tensor) -> Measured:
        """Return the penalty term over the rows of `record` (those with t < T_phi).

        It is sum_k C_k rho_k P_k, and what gives the gradient of the multipliers' part, sum_k relu(lambda_k + c_k S_k)
        S_k with the first factor held fixed; callbacks write C, lambda and c.

        Args:
            record: the rows that the constraints see.
            noise_error: `(B,)`, ||eps - eps_theta||^2 / dim of *all* rows: E of Algorithm 1, before the mean.
        """
        with without_autocast(noise_error):
            squared, excess, violating = zip(
                *[self._measure_constraint(c, record) for c in self.constraints], strict=True
            )
        sums, slacks, violations = (torch.stack([rows.sum() for rows in part]) for part in (squared, excess, violating))
        counts = [sums.new_full((1,), len(rows)) for rows in (record.timesteps, noise_error)]  # filled on the device
        parts = [sums, slacks, violations.to(sums), noise_error.sum()[None].to(sums), *counts]
        *totals, error, seen = sum_over_ranks(torch.cat(parts)).split([len(sums)] * 3 + [1, 2])
        rows = seen[0].clamp(min=1)
        penalty, slack, rates = (total / rows for total in totals)
        of_mean = self.in_expectation
        if any(of_mean):
            sums = torch.stack([mean_penalty(slack[k], slacks[k]) if m else sums[k] for k, m in enumerate(of_mean)])
            penalty = torch.stack([violation(slack[k]).square() if m else penalty[k] for k, m in enumerate(of_mean)])
            rates = torch.stack([(slack[k] > 0).to(rates) if m else rates[k] for k, m in enumerate(of_mean)])
        weight = self.penalty_coefficient * penalty_active(penalty, self.stop_below)
        if self.formulation.balanced:
            weight = weight * balance(error / seen[1], penalty)
        dual = multiplier_weight(self.multiplier, self.augmentation, slack)
        # DDP averages gradients over ranks; ours must be the sum over ranks divided by the global number of rows.
        loss = (weight * sums + dual * slacks).sum() * self.trainer.world_size / rows
        each = torch.stack([a + b for a, b in zip(squared, excess, strict=True)]).sum(0).detach()
        return Measured(loss, penalty, slack, rates, seen[0], each)

    def _measure_constraint(self, constraint: Any, record: StepRecord) -> tuple[Tensor, Tensor, Tensor]:
        clean, tolerance = record.predicted_clean, constraint.tolerance
        clean = to_float32(clean)
        if not len(clean):  # one rank's part of a batch may lie above T_phi; not every constraint takes an empty batch
            return clean.new_zeros(0), clean.new_zeros(0), clean.new_zeros(0, dtype=torch.bool)
        values = constraint(record if constraint.needs_step_record else clean).reshape(len(clean), -1)
        excess = (values - tolerance).amax(1)
        return quadratic_penalty(values, tolerance).sum(1), excess, (violation(values, tolerance) > 0).any(1)

    @torch.no_grad()
    def _frozen_prediction(self, noisy: Tensor, timesteps: Tensor, condition: Tensor | None) -> Prediction | None:
        if not (self.constraints and (self.formulation.anchored or any(c.needs_step_record for c in self.constraints))):
            return None
        adapters = adapters_off(self.denoiser.network) if self.lora else nullcontext()
        training = self.pretrained.training
        # Shards that were put together in inference mode are not fit for autograd.
        mode = nullcontext() if self.sharded else torch.inference_mode()
        with adapters, mode:
            output = self.denoiser.call(self.pretrained.eval(), noisy, timesteps, condition)
        self.pretrained.train(training)  # with LoRA it is the trained network
        return self.denoiser.interpret(output.clone(), noisy, timesteps)  # a clone may take part in autograd

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for p in self.denoiser.network.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}
