"""What `predict` does: a sample per seed, and with `reject_violations` one that satisfies the constraints."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback
from torch import Tensor

from constrained_diffusion.callbacks.certificate import Certificate
from constrained_diffusion.fine_tuning.evaluated import EvaluatedDiffusion
from constrained_diffusion.rejection import Rejection, rejection_sample


class RejectingDiffusion(EvaluatedDiffusion):
    """The predicting part of `ConstrainedDiffusion`; see there for the arguments."""

    reject_violations: bool
    max_draws: int

    @torch.no_grad()
    def feasible(self, clean: Tensor) -> Tensor:
        """Return 1.0 where `clean` `(B, *shape)`, in data units, satisfies every constraint, else 0.0; shape `(B,)`."""
        result = torch.ones(len(clean), device=clean.device)
        for constraint in self.constraints:
            if not constraint.needs_step_record:
                values = constraint(clean).reshape(len(clean), -1)
                result = result * (values <= constraint.tolerance).all(1)
        return result

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor | Rejection:
        """Return the samples of the seeds `batch` `(B,)`, `(B, *shape)`; with `reject_violations` their `Rejection`."""
        if not self.reject_violations:
            return self.sample(batch.tolist())
        return rejection_sample(self.sample, self._obeys, batch.tolist(), self.max_draws)

    def _obeys(self, samples: Tensor) -> Tensor:
        # In full precision, as they are written: under autocast a classifier would round its verdict.
        with torch.autocast(samples.device.type, enabled=False):
            return self.feasible(samples.to(torch.promote_types(samples.dtype, torch.float32)))

    def configure_callbacks(self) -> list[Callback]:
        given = any(isinstance(callback, Certificate) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [Certificate()] if self.reject_violations and not given else []
