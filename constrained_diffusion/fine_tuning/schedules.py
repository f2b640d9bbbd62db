"""Learning-rate schedules that torch does not have."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupStableDecay(LambdaLR):
    """Linear warm-up, a constant middle, then a linear decay to zero (Hu et al. 2024, arXiv 2404.06395, sec. 4.2).

    Unlike a cosine, the middle does not depend on the total, so that a run can be prolonged or cut short and still
    finish with a decay.

    Args:
        optimizer: the optimiser to steer.
        total_steps: optimiser steps in all; step the schedule once per optimiser step.
        warmup_steps, decay_steps: lengths of the first and the last phase.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_steps: int = 200, decay_steps: int = 2000
    ) -> None:
        def factor(step: int) -> float:
            return max(0.0, min(1.0, (step + 1) / max(warmup_steps, 1), (total_steps - step) / max(decay_steps, 1)))

        super().__init__(optimizer, factor)
