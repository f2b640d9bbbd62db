"""What `predict` does: a sample per seed, and with `reject_violations` one that satisfies the constraints."""

from __future__ import annotations

from torch import Tensor

from constrained_diffusion.diffusion.rejection import Rejection, rejection_sample
from constrained_diffusion.fine_tuning.evaluated import EvaluatedDiffusion


class RejectingDiffusion(EvaluatedDiffusion):
    """The predicting part of `ConstrainedDiffusion`; see there for the arguments."""

    reject_violations: bool
    max_draws: int

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor | Rejection:
        """Return the samples of the seeds `batch` `(B,)`, `(B, *shape)`; with `reject_violations` their `Rejection`."""
        if not self.reject_violations:
            return self.sample(batch.tolist())
        return rejection_sample(self.sample, self.feasible, batch.tolist(), self.max_draws)
