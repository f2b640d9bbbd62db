"""`PenaltyLoss`: what one batch costs, L_diff plus the penalties on the predicted clean sample (P eq. 14, Algorithm 1).

It needs torch alone: a training loop of one's own calls it as `ConstrainedDiffusion` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from constrained_diffusion.batch import NoisyBatch
from constrained_diffusion.condition import take
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.codec import Codec
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.fine_tuning.conditioning import condition_on_feasible
from constrained_diffusion.fine_tuning.formulation import Formulation, named_formulation
from constrained_diffusion.fine_tuning.penalty import (
    balance,
    mean_penalty,
    multiplier_weight,
    penalty_active,
    violation,
)
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.objectives import StepRecord
from constrained_diffusion.runtime.precision import without_autocast
from constrained_diffusion.runtime.randomness import to_device
from constrained_diffusion.runtime.ranks import sum_over_ranks, world_size


@dataclass(frozen=True)
class MinSNR:
    """Weights of the diffusion loss by the signal-to-noise ratio of a row (Hang et al. 2023, arXiv 2303.09556).

    Args:
        gamma: the most that an error of the clean sample counts.
        floor: the least; 0 for min-SNR itself.
    """

    gamma: float = 5.0
    floor: float = 0.0


class Measured(NamedTuple):
    """What one step measured of the constraints; all but `loss` and `each` are averages over ranks."""

    loss: Tensor  #: the penalty part of the loss, scalar, this rank's share, with gradient
    penalty: Tensor  #: `(K,)`, P, raw
    slack: Tensor  #: `(K,)`, S, mean of max_j(g_j - delta_j) over the rows below T_phi
    violation_rate: Tensor  #: `(K,)`, share of the rows below T_phi with g > tolerance
    rows: Tensor  #: scalar, how many rows are below T_phi, over all ranks
    each: Tensor  #: `(B',)`, what each row of this rank below T_phi adds to the sums, all constraints together


class StepLoss(NamedTuple):
    """What one batch costs, and what controllers and logs read of it."""

    loss: Tensor  #: scalar, with gradient
    row_sums: Tensor  #: `(B,)`, not finite where anything in the row is not; read only when a loss has gone wrong
    terms: dict[str, Tensor]  #: scalars, detached, by the name that they are logged under
    penalty: Tensor | None = None  #: `(K,)`, P; None without constraints, as are the two below
    slack: Tensor | None = None  #: `(K,)`, S
    penalty_rows: Tensor | None = None  #: scalar, how many rows of all ranks P and S are averages of


class PenaltyLoss(nn.Module):
    """The loss of `ConstrainedDiffusion`. Subclass it for another: `diffusion_loss` and `penalty` are the two terms.

    Args:
        steering: the constraints and their coefficients.
        denoiser: gives the schedule and the units; its network is not called.
        formulation: how the two terms are put together, by name or as a `Formulation`.
        max_timestep: T_phi; the constraints see the rows with t < T_phi. None: all rows.
        loss_weight: weights of L_diff by noise level; None: all alike.
        open_from: for a conditioned formulation, the timestep from which on a noisy sample may still become anything;
            half the schedule by default.
        decode_rows: at most so many rows of a batch carry the penalty, where decoding is dear; None: all below T_phi.

    Raises:
        ValueError: T_phi outside the schedule, an unknown formulation, or no row to decode.
    """

    bank: tuple[Tensor, Tensor] | None = None  #: samples `(N, *shape)` in network units and `(N,)`, 1.0 where feasible

    def __init__(
        self,
        steering: Steering,
        denoiser: Denoiser,
        formulation: str | Formulation = "anchored_algorithm1",
        max_timestep: int | None = None,
        loss_weight: MinSNR | None = None,
        open_from: int | None = None,
        decode_rows: int | None = None,
    ) -> None:
        super().__init__()
        if decode_rows is not None and decode_rows < 1:
            raise ValueError(f"decode_rows is a number of rows, at least 1, got {decode_rows}; None decodes all.")
        total = denoiser.noise_schedule.num_timesteps
        if max_timestep is not None and not 1 <= max_timestep <= total:
            raise ValueError(
                f"max_timestep (T_phi) must be in 1 .. {total}, the length of the schedule; got {max_timestep}."
            )
        self.steering = steering
        self.formulation = named_formulation(formulation) if isinstance(formulation, str) else formulation
        self.max_timestep, self.loss_weight, self.decode_rows = max_timestep or total, loss_weight, decode_rows
        self.open_from = total // 2 if open_from is None else open_from
        self._units = denoiser.noise_schedule, denoiser.codec  # in a tuple, for they are the denoiser's own

    @property
    def schedule(self) -> NoiseSchedule:
        """The denoiser's noise schedule."""
        return self._units[0]

    @property
    def codec(self) -> Codec:
        """Between the network's space and the data's units."""
        return self._units[1]

    @property
    def needs_frozen(self) -> bool:
        """Whether the loss compares with the frozen model's prediction."""
        return bool(self.steering.names) and (self.formulation.anchored or self.steering.needs_frozen)

    def forward(
        self,
        step: NoisyBatch,
        prediction: Prediction,
        frozen: Prediction | None = None,
        judged: Prediction | None = None,
    ) -> StepLoss:
        """Return what `step` costs.

        Args:
            step: the noisy rows.
            prediction: the trained network's, with gradient.
            frozen: the pretrained network's, where `needs_frozen`.
            judged: what constraints see in place of `prediction`: the trained network's with guidance, with gradient.
        """
        if self.needs_frozen and frozen is None:
            raise ValueError(
                "this formulation, or a constraint on steps, compares with the pretrained model: give `frozen`, as "
                'Networks.predict_frozen returns it, or choose "penalty" or "algorithm1".'
            )
        loss = self.diffusion_loss(step, prediction, frozen)
        terms, row_sums = {"loss/diffusion": loss.detach()}, prediction.output.detach().flatten(1).sum(1)
        if not self.steering.names:
            return StepLoss(loss, row_sums, {**terms, "loss/total": loss.detach()})
        # T_phi is known on the host: choosing the rows there spares the device a synchronisation.
        chosen = (step.highest < self.max_timestep).nonzero().squeeze(1)[: self.decode_rows]
        below = to_device(chosen, step.clean.device)
        record = self.record(step, prediction if judged is None else judged, frozen, below)
        measured = self.penalty(record, (step.noise - prediction.noise).square().flatten(1).mean(1))
        if len(measured.each) == len(below):  # a subclass may look at fewer rows
            row_sums = row_sums.index_add(0, below, measured.each.to(row_sums))
        for k, name in enumerate(self.steering.names):
            terms[f"penalty/{name}"] = measured.penalty[k]
            terms[f"violation_rate/{name}"] = measured.violation_rate[k]
            terms[f"slack/{name}"] = measured.slack[k]
            terms[f"penalty_coefficient/{name}"] = self.steering.penalty_coefficient[k].clone()
            terms[f"multiplier/{name}"] = self.steering.multiplier[k].clone()
        loss = loss + measured.loss
        terms["loss/total"] = loss.detach()
        return StepLoss(loss, row_sums, terms, measured.penalty, measured.slack, measured.rows)

    def record(self, step: NoisyBatch, prediction: Prediction, frozen: Prediction | None, rows: Tensor) -> StepRecord:
        """Return what constraints see of `rows` `(B',)`: the predicted clean sample, in data units, and the step."""
        return StepRecord(
            self.codec.decode(prediction.clean[rows]),
            step.noisy[rows],
            step.timesteps[rows],
            step.noise[rows],
            prediction.noise[rows],
            None if frozen is None else frozen.noise[rows],
            take(step.condition, rows),
        )

    def diffusion_loss(self, step: NoisyBatch, prediction: Prediction, frozen: Prediction | None) -> Tensor:
        """Return L_diff, a scalar: the error on the model's own target, or on the frozen model's output."""
        schedule, weight = self.schedule, None
        target = schedule.target(step.clean, step.noise, step.timesteps)
        if self.formulation.conditioned and frozen is not None:
            if self.bank is None:
                raise ValueError(
                    "a conditioned formulation compares noisy samples with samples of the pretrained model; set `bank` "
                    'to (samples in network units, 1.0 where feasible), or choose "anchored_algorithm1".'
                )
            bank = (*self.bank, step.rows, self.open_from)
            shift, weight = condition_on_feasible(step.noisy, step.timesteps, schedule, *bank)
            target = frozen.output + schedule.from_clean(shift, torch.zeros_like(step.noisy), step.timesteps)
        elif self.formulation.anchored and frozen is not None:
            target, weight = frozen.output, self.steering.feasible(step.data)
        error = self.errors(prediction.output, target, step.timesteps).flatten(1).mean(1)
        return error.mean() if weight is None else (error * weight).mean()  # over all rows, the others counting zero

    def held_out(self, step: NoisyBatch, output: Tensor) -> Tensor:
        """Return the mean error of `output`, weighted as in training, on the model's own target; a scalar."""
        target = self.schedule.target(step.clean, step.noise, step.timesteps)
        return self.errors(output, target, step.timesteps).mean()

    def errors(self, output: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """Return the squared errors of `output` `(B, *shape)`, `(B, ...)`, weighted by noise level."""
        each = (output - target).square()
        if self.loss_weight is None:
            return each
        weight = self.schedule.loss_weight(timesteps, self.loss_weight.gamma, self.loss_weight.floor)
        return each * weight.reshape(*weight.shape, *(1,) * (each.ndim - weight.ndim))

    def penalty(self, record: StepRecord, noise_error: Tensor) -> Measured:
        """Return the penalty term over the rows of `record` (those with t < T_phi).

        It is sum_k C_k rho_k P_k, and what gives the gradient of the multipliers' part, sum_k relu(lambda_k + c_k S_k)
        S_k with the first factor held fixed; controllers write C, lambda and c.

        Args:
            record: the rows that the constraints see.
            noise_error: `(B,)`, ||eps - eps_theta||^2 / dim of *all* rows: E of Algorithm 1, before the mean.
        """
        steering = self.steering
        with without_autocast(noise_error):
            each = [steering.measure(constraint, record) for constraint in steering.constraints]
        squared, excess, violating = zip(*each, strict=True)
        sums, slacks, violations = (torch.stack([rows.sum() for rows in part]) for part in (squared, excess, violating))
        counts = [sums.new_full((1,), len(rows)) for rows in (record.timesteps, noise_error)]  # filled on the device
        parts = [sums, slacks, violations.to(sums), noise_error.sum()[None].to(sums), *counts]
        *totals, error, seen = sum_over_ranks(torch.cat(parts)).split([len(sums)] * 3 + [1, 2])
        rows = seen[0].clamp(min=1)
        penalty, slack, rates = (total / rows for total in totals)
        of_mean = steering.in_expectation
        if any(of_mean):
            sums = torch.stack([mean_penalty(slack[k], slacks[k]) if m else sums[k] for k, m in enumerate(of_mean)])
            penalty = torch.stack([violation(slack[k]).square() if m else penalty[k] for k, m in enumerate(of_mean)])
            rates = torch.stack([(slack[k] > 0).to(rates) if m else rates[k] for k, m in enumerate(of_mean)])
        weight = steering.penalty_coefficient * penalty_active(penalty, steering.stop_below)
        if self.formulation.balanced:
            weight = weight * balance(error / seen[1], penalty)
        dual = multiplier_weight(steering.multiplier, steering.augmentation, slack)
        # DDP averages gradients over ranks; ours must be the sum over ranks divided by the global number of rows.
        loss = (weight * sums + dual * slacks).sum() * world_size() / rows
        row_parts = torch.stack([a + b for a, b in zip(squared, excess, strict=True)]).sum(0).detach()
        return Measured(loss, penalty, slack, rates, seen[0], row_parts)
