"""A control-barrier step on every predicted clean plan, in closed form (SafeDiffuser's RoS, Xiao et al., ICLR 2025).

With b(p) = |p - c|^2 / R^2 - 1, a point that was p and would become p' = p + u must satisfy

    grad b(p) . u + gain b(p) >= 0

For one disc the nearest such u has a closed form: u + lambda grad b(p), lambda the smallest number >= 0 that does it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.prediction import Predict, Prediction
from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones
from constrained_diffusion.domains.mazes.plans import check_plans
from constrained_diffusion.guides.base import Guide


class ZoneBarrier(Guide):
    """Lets no point of the predicted clean plan approach a zone faster than its barrier allows, from call to call.

    A point that is inside is driven out at the same rate, so that after some calls it is outside (finite time).

    Args:
        zones: the zones; their margin counts.
        gain: 1 as in SafeDiffuser; smaller is more careful.
    """

    def __init__(self, zones: ForbiddenZones, gain: float = 1.0) -> None:
        super().__init__()
        self.zones, self.gain = zones, gain

    def extra_repr(self) -> str:
        return f"gain={self.gain}"

    def check_data(self, shape: tuple[int, ...]) -> None:
        check_plans(shape, "ZoneBarrier")

    def forward(self, predict: Predict, denoiser: Denoiser) -> Predict:
        earlier: list[Tensor] = []  # the plan of the last call, of this sampling alone

        def stepped(noisy: Tensor, timesteps: Tensor) -> Prediction:
            _, noise, clean = predict(noisy, timesteps)
            clean = denoiser.codec.decode(clean)
            if earlier:
                radius = self.zones.radius + self.zones.margin
                moved = barrier_step(earlier.pop(), clean[..., :2], self.zones.centres, radius, self.gain)
                clean = torch.cat([moved, clean[..., 2:]], dim=-1)
            earlier.append(clean[..., :2])
            clean = denoiser.codec.encode(clean)
            return Prediction(denoiser.noise_schedule.from_clean(clean, noisy, timesteps), noise, clean)

        return stepped


def barrier_step(points: Tensor, wanted: Tensor, centres: Tensor, radius: float, gain: float) -> Tensor:
    """Return where `points` `(..., 2)` may go instead of `wanted` `(..., 2)`, one disc after the other."""
    for centre in centres.to(points):
        away = points - centre
        barrier = away.square().sum(-1, keepdim=True) / radius**2 - 1
        gradient = 2 * away / radius**2
        lack = -(gradient * (wanted - points)).sum(-1, keepdim=True) - gain * barrier
        steepness = gradient.square().sum(-1, keepdim=True).clamp(min=1e-6)
        wanted = wanted + (lack.clamp(min=0) / steepness) * gradient
    return wanted
