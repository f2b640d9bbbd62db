"""The base of everything that steers penalty coefficients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class PenalisedModule(Protocol):
    """What a constraint callback needs of a module; `ConstrainedDiffusion` offers it.

    `training_step` must return a dict with `penalty`: P `(K,)`, averaged over all ranks, detached.
    """

    constraint_names: list[str]
    penalty_coefficient: Tensor  #: buffer `(K,)`, C, multiplies the penalty of the next step
    stop_below: Tensor  #: buffer `(K,)`, tau: the penalty is released in a step whose P is not above it


class ConstraintCallback(Callback, ABC):
    """Sees the rank-averaged penalty of every optimiser step and writes the coefficients.

    Subclass it and write `update`; the base averages over ranks' and accumulated micro-batches' values, so that every
    rank decides the same, and calls `update` once per optimiser step.
    """

    def __init__(self) -> None:
        self.steps = 0  #: optimiser steps seen, in the checkpoint
        self._penalties: list[Tensor] = []

    @abstractmethod
    def update(self, trainer: Trainer, module: PenalisedModule, penalty: Tensor) -> None:
        """React to one optimiser step: `penalty` is P `(K,)` of that step.

        Write `module.penalty_coefficient` in place; set `trainer.should_stop` to end the fit.
        """

    def start(self, trainer: Trainer, module: PenalisedModule) -> None:
        """Write the coefficients before the first step; after a resume too."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not len(getattr(pl_module, "constraint_names", [])):
            raise ValueError(
                f"{type(self).__name__} steers the penalties of a module with constraints, but the model has none; add "
                "`constraints` to the model, or take the callback out."
            )

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._penalties.append(outputs["penalty"])
        if trainer.global_step > self.steps:
            penalty = torch.stack(self._penalties).mean(0)
            self._penalties.clear()
            self.steps = trainer.global_step
            self.update(trainer, pl_module, penalty)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]
