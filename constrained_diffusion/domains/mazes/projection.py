"""Projection of every predicted clean plan out of the zones (projected diffusion, Christopher et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.prediction import Predict, Prediction
from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones
from constrained_diffusion.domains.mazes.plans import check_plans
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.objectives import Constraint


class ZoneProjection(Guide):
    """Puts each point of a predicted clean plan that lies in a zone onto the nearest point of the zone's edge.

    Args:
        zones: the zones; their margin counts. None: those of the fit that the guide serves.
        below: only at timesteps below this one; None: at all.

    Raises:
        ValueError: there are no zones, neither given nor among a fit's constraints; when it is bound, or used.
    """

    def __init__(self, zones: ForbiddenZones | None = None, below: int | None = None) -> None:
        super().__init__()
        self.zones, self.below = nn.ModuleList([] if zones is None else [zones]), below

    def bind(self, constraints: Sequence[Constraint]) -> None:
        if not self.zones:
            self.zones.extend(constraint for constraint in constraints if isinstance(constraint, ForbiddenZones))
            self._check()

    def extra_repr(self) -> str:
        return f"below={self.below}"

    def check_data(self, shape: tuple[int, ...]) -> None:
        check_plans(shape, "ZoneProjection")
        self._check()

    def _check(self) -> None:
        if not self.zones:
            raise ValueError(
                "ZoneProjection expects zones to put plans out of, got none; give it zones, or fit under "
                "ForbiddenZones."
            )

    def forward(self, predict: Predict, denoiser: Denoiser) -> Predict:
        self._check()

        def projected(noisy: Tensor, timesteps: Tensor) -> Prediction:
            output, noise, clean = predict(noisy, timesteps)
            if self.below is not None and int(timesteps.max()) >= self.below:
                return Prediction(output, noise, clean)
            clean = denoiser.codec.decode(clean)
            moved = clean[..., :2]
            for zones in self.zones:
                moved = pushed_out(moved, zones.centres, zones.radius + zones.margin)  # type: ignore[arg-type, operator]
            clean = denoiser.codec.encode(torch.cat([moved, clean[..., 2:]], dim=-1))
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
