"""Guidance by the gradient of an objective through the denoiser (Song et al. 2023, ICML): loss-guided diffusion."""

from __future__ import annotations

from torch import Tensor

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.prediction import Predict
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.noise_optimization.baselines import loss_guided
from constrained_diffusion.objectives import Constraint, Feasibility, Objective, measure_constraint, measure_reward


class LossGuidance(Guide):
    """Moves every predicted clean sample up the gradient of a reward, or away from violations of a constraint.

    A sample then costs a backward pass through the denoiser per step.

    Args:
        objective: what to follow; a constraint is read as its `Feasibility`, or, with `squared`, as minus the sum of
            the squared violations, whose gradient fades where nothing is violated.
        scale: strength.
        samples: Monte-Carlo samples around the predicted clean sample; 1 takes the prediction itself.
        squared: see `objective`.

    Raises:
        TypeError: the objective is not differentiable.
    """

    def __init__(self, objective: Objective, scale: float = 1.0, samples: int = 1, squared: bool = True) -> None:
        super().__init__()
        if not objective.differentiable:
            raise TypeError(
                f"LossGuidance needs a gradient, but {type(objective).__name__} has none; optimise the noise with a "
                "black-box estimator instead."
            )
        self.objective, self.scale, self.samples, self.squared = objective, scale, samples, squared

    def extra_repr(self) -> str:
        return f"scale={self.scale}, samples={self.samples}, squared={self.squared}"

    def forward(self, predict: Predict, denoiser: Denoiser) -> Predict:
        def reward(sample: Tensor) -> Tensor:
            clean = denoiser.codec.decode(sample)
            if isinstance(self.objective, Constraint) and self.squared:
                excess = measure_constraint(self.objective, clean) - self.objective.tolerance
                squares: Tensor = excess.clamp(min=0).square().sum(1)
                return -squares
            objective = Feasibility(self.objective) if isinstance(self.objective, Constraint) else self.objective
            return measure_reward(objective, clean)

        return loss_guided(predict, denoiser.noise_schedule, reward, self.scale, self.samples)
