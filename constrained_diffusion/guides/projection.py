"""Projection of every predicted clean plan out of the zones (projected diffusion, Christopher et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained_diffusion.constraints.zones import ForbiddenZones
from constrained_diffusion.denoisers.adapter import Denoiser, Prediction
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.maze.plans import check_plans
from constrained_diffusion.sampling import Predict


class Projection(Guide):
    """Puts each point of a predicted clean plan that lies in a zone onto the nearest point of the zone's edge.

    Args:
        zones: the zones; their margin counts.
        below: only at timesteps below this one; None: at all.
    """

    def __init__(self, zones: ForbiddenZones, below: int | None = None) -> None:
        super().__init__()
        self.zones, self.below = zones, below

    def extra_repr(self) -> str:
        return f"below={self.below}"

    def check_data(self, shape: tuple[int, ...]) -> None:
        check_plans(shape, "Projection")

    def forward(self, predict: Predict, denoiser: Denoiser) -> Predict:
        def projected(noisy: Tensor, timesteps: Tensor) -> Prediction:
            output, noise, clean = predict(noisy, timesteps)
            if self.below is not None and int(timesteps.max()) >= self.below:
                return Prediction(output, noise, clean)
            clean = denoiser.normalizer.denormalize(clean)
            moved = pushed_out(clean[..., :2], self.zones.centres, self.zones.radius + self.zones.margin)
            clean = denoiser.normalizer.normalize(torch.cat([moved, clean[..., 2:]], dim=-1))
            return Prediction(denoiser.noise_schedule.from_clean(clean, noisy, timesteps), noise, clean)

        return projected


def pushed_out(points: Tensor, centres: Tensor, radius: float) -> Tensor:
    """Return points `(..., 2)` with those inside a disc moved radially onto its edge; discs one after the other.

    >>> pushed_out(torch.tensor([[0.5, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.0]]), 1.0)
    tensor([[1., 0.],
            [2., 0.]])
    """
    for centre in centres.to(points):
        away = points - centre
        distance = away.norm(dim=-1, keepdim=True)
        # From the very centre every way out is as short; to the right is one.
        direction = torch.where(distance > 0, away / distance.clamp(min=1e-9), away.new_tensor([1.0, 0.0]))
        points = torch.where(distance < radius, centre + radius * direction, points)
    return points
