"""How a fit ended: feasible, infeasible at budget, or diverged, and what it cost."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from constrained_diffusion.callbacks.run.pending_losses import PendingStep, first_broken, pending_step
from constrained_diffusion.fine_tuning.step_log import at_log_step
from constrained_diffusion.reports import table
from constrained_diffusion.runtime.files import write_json
from constrained_diffusion.runtime.ranks import gather_from_ranks, sum_over_ranks
from constrained_diffusion.runtime.run_folder import RunFolder
from constrained_diffusion.runtime.sharding import local
from constrained_diffusion.statistics import clopper_pearson_upper, least_samples


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class FitStatus(Callback):
    """Ends a fit with its verdict, written to `status.json` in the run's folder too, with the settings behind it.

    Feasible: some validation found the upper 95 % bound of the share of EMA samples with g > tolerance at or below
    `module.max_violation_rate`; of these the one with the lowest held-out diffusion loss is reported (`best_feasible`).
    A loss or a weight that is NaN or infinite ends the fit as diverged and leaves the checkpoints as they were. Losses
    are read at log steps (`trainer.log_every_n_steps`) and before each checkpoint and validation; the first broken step
    is named, however late it is read.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  #: of earlier parts of a resumed fit
        self.evaluation_seconds = 0.0  #: of them, spent in validations
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self._validating = 0.0
        self._started = time.monotonic()  # when the fit is set up: drawing its training set counts
        self._unread: list[PendingStep] = []
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._unread.clear()
        if not _names(pl_module):
            return
        if way_on := _too_short(trainer):
            rank_zero_info(f"this fit has no validation and so no verdict: {way_on}.")
        else:
            samples = getattr(getattr(trainer, "datamodule", None), "val_samples", 0)
            if said := cannot_be_shown(samples, pl_module.max_violation_rate):  # type: ignore[arg-type]
                rank_zero_info(said)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        self._unread.append(pending_step(self._step + (not stepped), outputs, batch))
        if stepped and at_log_step(trainer):  # reading a value makes a GPU wait
            self._read(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    def _read(self, trainer: Trainer, module: Any) -> None:
        """End the fit if a loss since the last look was not finite on any rank, at the first such step."""
        log = getattr(module, "step_log", None)  # which has read it along with what is logged
        broken = None if log is not None and log.read().finite else first_broken(self._unread)
        self._unread.clear()
        # All ranks end together: one that goes on would wait for the others for ever.
        if trainer.strategy.reduce_boolean_decision(broken is not None, all=False):
            own = None if broken is None else (broken.step, float(broken.loss), broken.where())
            found = [each for each in gather_from_ranks(own) if each is not None]
            step, loss, where = min(found, key=lambda each: each[0])
            self._diverged(trainer, f"the loss is {loss}", where, step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating = time.monotonic()
        if trainer.state.fn == TrainerFn.FITTING:
            self._check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        """End the fit if a loss is broken, or if its last step broke weights, which the loss shows only in the next."""
        self._read(trainer, module)
        trained = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        wrong = [~torch.isfinite(value).all() for value in local(value for _, value in trained)]
        counts = sum_over_ranks(torch.stack(wrong).int()).tolist() if wrong else []  # each rank may have a share alone
        broken = [name for (name, _), count in zip(trained, counts, strict=True) if count]
        if broken:
            self._diverged(
                trainer,
                f"{len(broken)} of {len(trained)} tensors of weights are broken",
                broken[:1],
                trainer.global_step,
            )

    def _diverged(self, trainer: Trainer, what: str, where: list[str], step: int) -> None:
        _write(trainer, {"status": "diverged", "step": step, "seconds": self._elapsed()})
        raise DivergedError(
            f"diverged: {what} at step {step} (not finite: {', '.join(where) or 'loss'}); {way_out(where)}; the last "
            "checkpoint is untouched."
        )

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.evaluation_seconds += time.monotonic() - self._validating
        if trainer.sanity_checking:
            return
        self.last = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self.last["step"] = trainer.global_step
        upper = self.last.get("val/own_violation_upper_95")
        if upper is not None and upper <= pl_module.max_violation_rate:
            loss = self.last.get("val/diffusion_loss", 0.0)
            if math.isfinite(loss) and (not self.best or loss < self.best.get("val/diffusion_loss", 0.0)):
                self.best = self.last

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not _names(pl_module):
            return
        status = "feasible" if self.best else "infeasible"
        values, told = self.best or self.last, settings(pl_module)
        seconds = {"seconds": self._elapsed(), "evaluation_seconds": self.evaluation_seconds}
        _write(trainer, {"status": status, **seconds, "cost": describe(values, told), "values": values, **told})
        if "val/own_violation_upper_95" in values:
            text = sentence(status, values, pl_module.max_violation_rate, trainer.global_step, self._elapsed(), told)
        else:
            ended = f"{status} after {trainer.global_step} steps and {self._elapsed():.0f} s"
            text = f"{ended}: no validation drew samples; {_too_short(trainer) or 'set data.val_samples'}."
        rank_zero_info(text)

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        seconds = {"seconds": self._elapsed(), "evaluation_seconds": self.evaluation_seconds}
        return {**seconds, "best": self.best, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.evaluation_seconds = state_dict["seconds"], state_dict["evaluation_seconds"]
        self.best, self.last = state_dict["best"], state_dict["last"]


def way_out(broken: list[str]) -> str:
    """Return what to do where the terms of the loss in `broken` are not finite.

    >>> way_out(["penalty/MyRule", "loss/total"])
    "look at MyRule: its g is not finite, though the network's output is (a division by zero, a root of 0?)"
    >>> way_out(["loss/diffusion", "penalty/MyRule", "loss/total"])
    'lower the learning rate or clip gradients (trainer.gradient_clip_val)'
    """
    names = [term.removeprefix("penalty/") for term in broken if term.startswith("penalty/")]
    if names and "loss/diffusion" not in broken:
        return (
            f"look at {' and '.join(names)}: its g is not finite, though the network's output is (a division by zero, "
            "a root of 0?)"
        )
    return "lower the learning rate or clip gradients (trainer.gradient_clip_val)"


def cannot_be_shown(samples: int, allowed: float) -> str | None:
    """Return why no fit can be feasible, if `samples` of a validation are too few to bound a rate by `allowed`.

    >>> cannot_be_shown(299, 0.01)
    >>> cannot_be_shown(8, 0.01).partition(":")[2]
    ' the upper bound of none in 8 is 31.3 %; set data.val_samples to at least 299, or raise max_violation_rate.'
    """
    least = least_samples(allowed)
    if not samples or least is None or samples >= least:
        return None
    bound = table.percent(clopper_pearson_upper(0, samples), up=True)
    return (
        f"no validation can show that at most {table.percent(allowed)} of the samples violate: the upper bound of none "
        f"in {samples} is {bound}; set data.val_samples to at least {least}, or raise max_violation_rate."
    )


def sentence(
    status: str, values: dict[str, float], allowed: float, steps: int, seconds: float, declared: dict[str, Any]
) -> str:
    """Return the lines that a fit ends with: the verdict by the constraints' own g, and what the judge found.

    Args:
        status: "feasible" or "infeasible".
        values: what the validation that counts has logged, by its names.
        allowed: the share of samples that may violate.
        steps: optimiser steps of the fit.
        seconds: how long it took.
        declared: what the evaluation declares; see `Evaluation.declared`.
    """
    rate, upper = values["val/own_violation_rate"], table.percent(values["val/own_violation_upper_95"], up=True)
    how = "at most" if status == "feasible" else "above"
    where = f"at step {values['step']:.0f} of {steps}" if status == "feasible" else f"after all {steps} steps"
    count = f", n = {values['val/n']:,.0f}" if "val/n" in values else ""
    lines = [
        f"{status}: {where}, {table.percent(rate)} of the EMA samples violate by own g (upper 95 % bound {upper}, "
        f"{how} the allowed {table.percent(allowed)}{count}); {seconds:.0f} s."
    ]
    each = measured_values(values)["constraints"]
    if len(each) > 1:
        lines.append("By own g: " + "; ".join(f"{name} {table.found(one)}" for name, one in each.items()) + ".")
    judged = table.found(measured_values(values))
    if judged:
        lines.append(f"By the judge: {table.subject(declared)} {judged}.")
    lines.append(f"Cost: {describe(values, declared)}.")  # the held-out loss is nobody's judgement
    return "\n".join(lines)


def _names(module: Any) -> list[str]:
    """Return the names of a module's constraints; a module of another kind has none."""
    return getattr(getattr(module, "steering", None), "names", [])


def _too_short(trainer: Trainer) -> str:
    """Return what to change where the fit ends before its first validation; "" where it does not."""
    epochs, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    if epochs is None or every is None or not 0 <= epochs < every:
        return ""
    return f"raise trainer.max_epochs ({epochs}) to trainer.check_val_every_n_epoch ({every}) at least, or lower that"


def measured_values(values: dict[str, float]) -> dict[str, Any]:
    """Return logged values (`val/NAME`, `val/NAME/CONSTRAINT`) in the form of one side of `results.json`.

    >>> measured_values({"val/n": 8.0, "val/fid": 7.0, "val/violation_rate/Rule": 0.25})["constraints"]
    {'Rule': {'violation_rate': 0.25, 'n': 8.0}}
    """
    plain = {key.removeprefix("val/"): value for key, value in values.items()}
    constraints: dict[str, dict[str, float]] = {}
    for key, value in plain.items():
        kind, slash, name = key.partition("/")
        if slash:
            constraints.setdefault(name, {})[kind] = value
    count = {"n": plain["n"]} if "n" in plain else {}
    return {**plain, "metrics": plain, "constraints": {name: one | count for name, one in constraints.items()}}


def describe(values: dict[str, float], declared: dict[str, Any]) -> str:
    """Return what is known of the rest of the distribution, in words: the held-out loss, and the headline figures.

    >>> headline = {"key": "fid", "label": "FID", "headline": True}
    >>> describe({"val/diffusion_loss": 0.031, "val/fid": 7.25}, {"figures": [headline]})
    'held-out loss 0.0310, FID 7.2'
    """
    loss = [f"held-out loss {values['val/diffusion_loss']:.4f}"] if "val/diffusion_loss" in values else []
    metrics = measured_values(values)["metrics"]
    shown = [(one, table.written(one, metrics)) for one in table.figures(declared) if one.headline]
    return ", ".join([*loss, *(f"{one.label} {text}" for one, text in shown if text != "-")]) or "not measured"


def settings(module: Any) -> dict[str, Any]:
    """Return the numbers of a fit that reports show: what is allowed, tau of each constraint, what is declared."""
    evaluation, taus = module.evaluation, module.steering.stop_below.tolist()
    return {
        "max_violation_rate": module.max_violation_rate,
        "stop_below": dict(zip(module.steering.names, taus, strict=True)),
        **({} if evaluation is None else evaluation.declared()),
    }


def _write(trainer: Trainer, status: dict[str, Any]) -> None:
    if trainer.is_global_zero:
        run = RunFolder.of(trainer)
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.status, status)
