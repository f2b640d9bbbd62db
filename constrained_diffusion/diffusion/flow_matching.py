"""The family of flow matching: s = 1 - u, sigma = u (SD 3, FLUX, Sana; Esser et al. 2024, arXiv 2403.03206)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from constrained_diffusion.diffusion.noise_schedule import Level, NoiseSchedule
from constrained_diffusion.diffusion.prediction_types import NAMED

if TYPE_CHECKING:
    from constrained_diffusion.diffusion.sampler import Sampler

SPACINGS = ("linear", "training", "dynamic", "dpm", "unipc")


class FlowMatching(NoiseSchedule):
    """A straight path from noise to data; the network returns eps - x_0, and timesteps are t = T u, any number.

    Args:
        shift: of the sampler's grid towards the noise, u -> shift u / (1 + (shift - 1) u); 1 leaves it even.
        num_timesteps: T.
        time_scale: the network's time is T u times this: 1, or 0.001 where it expects u itself.
        sampler_settings: arguments of `Sampler` in place of the family's: spacing "linear", not clipped.

    Raises:
        ValueError: a shift, a length or a scale is not above 0.
    """

    def __init__(
        self,
        shift: float = 1.0,
        num_timesteps: int = 1000,
        time_scale: float = 1.0,
        sampler_settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not min(shift, num_timesteps, time_scale) > 0:
            raise ValueError(
                f"FlowMatching expects shift, num_timesteps and time_scale above 0, got {shift}, {num_timesteps} and "
                f"{time_scale}."
            )
        self.shift, self.num_timesteps, self.time_scale = shift, num_timesteps, time_scale
        self.prediction_type, self.prediction = "flow", NAMED["flow"]
        self.sampler_settings = {"spacing": "linear", "clip_sample": False, **(sampler_settings or {})}

    def signal_and_sigma(self, timesteps: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return 1 - u and u."""
        sigma = timesteps.to(torch.promote_types(timesteps.dtype, dtype)) / self.num_timesteps
        return (1 - sigma).to(dtype), sigma.to(dtype)

    def as_timesteps(self, values: Tensor) -> Tensor:
        """Return them as they are: the network knows every level."""
        return values.double()

    def network_time(self, timesteps: Tensor) -> Tensor:
        """Return T u times the scale, in single precision."""
        return (timesteps * self.time_scale).float()

    def grid(self, sampler: Sampler) -> list[Level]:
        """Return the levels of diffusers' FlowMatchEuler: "training", its own, or "linear", which FLUX gives it.

        "dynamic" is its own where the shift depends on the size of a sample, and so comes once and not twice.

        "dpm" and "unipc" are those of its DPMSolver and UniPC schedulers.

        Raises:
            ValueError: an unknown spacing, or more steps than there are levels.
        """
        if sampler.spacing not in SPACINGS:
            raise ValueError(
                f"spacing must be one of {', '.join(SPACINGS)} for a flow-matching model, got '{sampler.spacing}'."
            )
        total, steps = self.num_timesteps, sampler.steps
        if steps > total:
            raise ValueError(f"expected at most {total} steps, the schedule's length, got {steps}.")
        inside = 1 - 1 / total
        first, last = {
            "linear": (1.0, 1 / steps),
            "training": (1.0, float(self._shifted(np.float64(1 / total)))),
            "dynamic": (1.0, 1 / total),
            "dpm": (inside, inside / steps),
            "unipc": (1.0, 1 - inside * (steps - 1) / steps),
        }[sampler.spacing]
        values = self._shifted(np.linspace(first, last, steps)).tolist()
        return [*(Level(total * u, 1 - u, u) for u in values), Level(0, 1.0, 0.0)]

    def _shifted(self, values: Any) -> Any:
        return self.shift * values / (1 + (self.shift - 1) * values)
