"""How far the model may move from the pretrained one: a quality guard beside any other constraint."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained_diffusion.objectives import Constraint, StepRecord, register


@register()
class KLFromPretrained(Constraint):
    """KL(pretrained || model) <= kappa, the trust region of RLHF as a constraint (P section 3.1).

    Measured on the predictions: KL between two Gaussians of unit variance around the noise that either model predicts
    for the same noisy input, ||eps_theta - eps_pretrained||^2 / 2, per dimension, averaged over the noisy inputs with
    t < T_phi. It weighs all noise levels alike; the KL of the whole reverse process weighs level t by
    SNR(t-1) / SNR(t) - 1. The pretrained predictions come from the frozen copy, with LoRA from the same network with
    its adapters off.

    g = KL / kappa - 1, so that tolerances and tau are shares of kappa. It limits the mean, not each row
    (`in_expectation`): P = relu(mean g - delta)^2.

    Args:
        kappa: the most that the KL may be, in nats per dimension; the noise error of a trained model is of the order
            of 1e-2, and half the squared difference of two such models of the same.
        tolerance: delta, in units of kappa.

    Raises:
        ValueError: kappa is not positive.
    """

    needs_step_record = True
    in_expectation = True

    def __init__(self, kappa: float, tolerance: float = 0.0) -> None:
        super().__init__(tolerance)
        if not 0 < kappa < float("inf"):
            raise ValueError(f"KLFromPretrained expects a positive kappa, in nats per dimension, got {kappa}.")
        self.kappa = kappa

    def forward(self, record: StepRecord) -> Tensor:  # type: ignore[override]  # as `needs_step_record` says
        """Return g of shape `(B,)`, at least -1; negative means closer than kappa."""
        if record.frozen_noise is None:
            raise ValueError(
                "KLFromPretrained compares with the pretrained model's predictions, but the step has none; take "
                "ConstrainedDiffusion, which keeps them for every constraint with `needs_step_record`."
            )
        own = record.predicted_noise.to(torch.promote_types(record.predicted_noise.dtype, torch.float32))
        return (own - record.frozen_noise.to(own)).square().flatten(1).mean(1) / (2 * self.kappa) - 1
