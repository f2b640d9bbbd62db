"""What a training step logs: it stays on the device until a log step, and is then read as one tensor.

Lightning's `log_dict` reads each value by itself, and a GPU waits for every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class Reading(NamedTuple):
    """What the host has read of the step that was noted last."""

    values: dict[str, float]  #: the step's terms, by the name that they are logged under
    finite: bool  #: whether the losses of this fit so far are


class StepLog:
    """Takes down the terms of every step, and writes those of log steps to the trainer's loggers."""

    def __init__(self) -> None:
        self._terms: dict[str, Tensor] = {}
        self._finite: Tensor | None = None
        self._reading = Reading({}, True)
        self._unread = False
        self._written = 0  # the optimiser step that was written last

    def start(self, global_step: int) -> None:
        """Begin a fit, or go on with one after so many optimiser steps."""
        self._finite, self._unread, self._reading, self._written = None, False, Reading({}, True), global_step

    def note(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Take down one batch: its loss, and scalars by their names; nothing is read."""
        finite = torch.isfinite(loss.detach()).all()
        self._finite = finite if self._finite is None else self._finite & finite
        self._terms, self._unread = dict(terms), True

    def read(self) -> Reading:
        """Return the terms noted last; the device is waited for once, however often this is called."""
        if self._unread and self._finite is not None:
            wide = torch.float64 if any(v.dtype == torch.float64 for v in self._terms.values()) else torch.float32
            together = torch.stack([v.detach().to(wide) for v in (*self._terms.values(), self._finite)])
            *values, finite = together.tolist()
            self._reading = Reading(dict(zip(self._terms, values, strict=True)), bool(finite))
            self._unread = False
        return self._reading

    def write(self, trainer: Trainer) -> None:
        """Hand the values to the loggers and to `trainer.callback_metrics`, if the optimiser has made a log step."""
        if trainer.global_step == self._written or not at_log_step(trainer):
            return
        self._written, values = trainer.global_step, self.read().values
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)


def at_log_step(trainer: Trainer) -> bool:
    """Return whether the step just made is one after which values are read: the place where the host may wait."""
    return trainer.global_step % (trainer.log_every_n_steps or 50) == 0  # type: ignore[attr-defined]
