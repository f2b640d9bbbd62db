"""How a fit ended: feasible, infeasible at budget, or diverged, and what it cost."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from constrained_diffusion.callbacks.run.pending_losses import PendingStep, at_log_step, first_broken, pending_step
from constrained_diffusion.runtime.ranks import gather_from_ranks


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class FitStatus(Callback):
    """Ends a fit with one sentence, written to `status.json` in the run's folder too.

    Feasible: some validation found the upper 95 % bound of the share of EMA samples with g > tolerance at or below
    `module.max_violation_rate`; of these the one with the lowest held-out diffusion loss is reported (`best_feasible`).
    A loss or a weight that is NaN or infinite ends the fit as diverged and leaves the checkpoints as they were. Losses
    are read at log steps (`trainer.log_every_n_steps`) and before each checkpoint and validation; the first broken step
    is named, however late it is read.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  #: of earlier parts of a resumed fit
        self.evaluation_seconds = 0.0  #: of them, spent in validations
        self.first: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self._validating = 0.0
        self._started = time.monotonic()  # when the fit is set up: drawing its training set counts
        self._unread: list[PendingStep] = []
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(pl_module, "constraint_names", []) and (way_on := _too_short(trainer)):
            rank_zero_info(f"this fit has no validation and so no verdict: {way_on}.")
        self._step = trainer.global_step
        self._unread.clear()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        self._unread.append(pending_step(self._step + (not stepped), outputs, batch))
        if stepped and at_log_step(trainer):  # reading a value makes a GPU wait
            self._read(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    def _read(self, trainer: Trainer) -> None:
        """End the fit if a loss since the last look was not finite on any rank, at the first such step."""
        broken = first_broken(self._unread)
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
        self._read(trainer)
        trained = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        broken = [name for name, value in trained if not torch.isfinite(value).all()]
        if trainer.strategy.reduce_boolean_decision(bool(broken), all=False):
            self._diverged(
                trainer,
                f"{len(broken)} of {len(trained)} tensors of weights are broken",
                broken[:1],
                trainer.global_step,
            )

    def _diverged(self, trainer: Trainer, what: str, where: list[str], step: int) -> None:
        _write(trainer, {"status": "diverged", "step": step, "seconds": self._elapsed()})
        raise DivergedError(
            f"diverged: {what} at step {step} (not finite: {', '.join(where) or 'loss'}); lower the "
            "learning rate or clip gradients (trainer.gradient_clip_val); the last checkpoint is untouched."
        )

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.evaluation_seconds += time.monotonic() - self._validating
        if trainer.sanity_checking:
            return
        self.last = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self.last["step"] = trainer.global_step
        self.first = self.first or self.last
        upper = self.last.get("val/own_violation_upper_95")
        if upper is not None and upper <= pl_module.max_violation_rate:
            loss = self.last.get("val/diffusion_loss", 0.0)
            if math.isfinite(loss) and (not self.best or loss < self.best.get("val/diffusion_loss", 0.0)):
                self.best = self.last

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not getattr(pl_module, "constraint_names", []):
            return
        status = "feasible" if self.best else "infeasible"
        values = self.best or self.last
        cost = describe(values)
        seconds = {"seconds": self._elapsed(), "evaluation_seconds": self.evaluation_seconds}
        _write(trainer, {"status": status, **seconds, "cost": cost, "values": values})
        words = sentence(status, values, pl_module.max_violation_rate, trainer.global_step, self._elapsed())
        rank_zero_info(words.replace("set data.val_samples", _too_short(trainer) or "set data.val_samples"))

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        seconds = {"seconds": self._elapsed(), "evaluation_seconds": self.evaluation_seconds}
        return {**seconds, "first": self.first, "best": self.best, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.evaluation_seconds = state_dict["seconds"], state_dict["evaluation_seconds"]
        self.first = state_dict["first"]
        self.best, self.last = state_dict["best"], state_dict["last"]


def sentence(status: str, values: dict[str, float], allowed: float, steps: int, seconds: float) -> str:
    """Return the one sentence that a fit ends with."""
    if "val/own_violation_upper_95" not in values:
        return f"{status} after {steps} steps and {seconds:.0f} s: no validation drew samples; set data.val_samples."
    rate, upper = values["val/own_violation_rate"], values["val/own_violation_upper_95"]
    how = "at most" if status == "feasible" else "above"
    where = f"at step {values['step']:.0f} of {steps}" if status == "feasible" else f"after all {steps} steps"
    return (
        f"{status}: {where}, {rate:.2%} of the EMA samples violate (upper 95 % bound {upper:.2%}, {how} the allowed "
        f"{allowed:.2%}); {seconds:.0f} s; cost: {describe(values)}."
    )


def _too_short(trainer: Trainer) -> str:
    """Return what to change where the fit ends before its first validation; "" where it does not."""
    epochs, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    if epochs is None or every is None or not 0 <= epochs < every:
        return ""
    return f"raise trainer.max_epochs ({epochs}) to trainer.check_val_every_n_epoch ({every}) at least, or lower that"


def describe(values: dict[str, float]) -> str:
    """Return what is known of the rest of the distribution, in words.

    >>> describe({"val/diffusion_loss": 0.031, "val/fid": 7.25})
    'held-out loss 0.0310, FID 7.25'
    """
    words = {
        "val/diffusion_loss": "held-out loss {:.4f}",
        "val/total_variation": "total variation of the rest {:.3f}",
        "val/non_digit_rate": "non-digits {:.1%}",
        "val/fid": "FID {:.2f}",
    }
    return ", ".join(text.format(values[key]) for key, text in words.items() if key in values) or "not measured"


def _write(trainer: Trainer, status: dict[str, Any]) -> None:
    if trainer.is_global_zero:
        run = Path(trainer.default_root_dir)
        run.mkdir(parents=True, exist_ok=True)
        (run / "status.json").write_text(json.dumps(status, indent=2))
