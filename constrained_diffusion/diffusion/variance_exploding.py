"""The family of EDM and consistency models: s = 1, any sigma (Karras et al. 2022; Song et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from constrained_diffusion.diffusion import grids
from constrained_diffusion.diffusion.noise_schedule import Level, NoiseSchedule
from constrained_diffusion.diffusion.prediction_types import Preconditioned

if TYPE_CHECKING:
    from constrained_diffusion.diffusion.sampler import Sampler

Kind = Literal["edm", "edm_v", "consistency"]


class VarianceExploding(NoiseSchedule):
    """Noise on top of the sample; a timestep is a place, any number, on the list of T levels from sigma_min up.

    The network sees x_t / sqrt(sigma^2 + sigma_data^2) and log(sigma) / 4, for a consistency model 250 log(sigma).

    Args:
        sigma_min, sigma_max: the ends of the list.
        sigma_data: standard deviation of the data, in network units.
        rho: the list is even in sigma^(1 / rho).
        num_timesteps: T.
        kind: what the network returns: F of EDM, -F, which diffusers calls v_prediction, or F of a consistency model.
        sampler_settings: arguments of `Sampler` in place of the family's: spacing "karras", not clipped; of a
            consistency model: "list", clipped, with fresh noise after each step, from noise of sigma_max alone.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max, or fewer than two levels.
    """

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        rho: float = 7.0,
        num_timesteps: int = 1000,
        kind: Kind = "edm",
        sampler_settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < sigma_min < sigma_max or num_timesteps < 2 or not min(sigma_data, rho) > 0:
            raise ValueError(
                "VarianceExploding expects 0 < sigma_min < sigma_max, sigma_data and rho above 0 and at least two "
                f"levels, got sigma_min={sigma_min}, sigma_max={sigma_max}, sigma_data={sigma_data}, rho={rho} and "
                f"num_timesteps={num_timesteps}."
            )
        self.sigma_min, self.sigma_max, self.sigma_data, self.rho = sigma_min, sigma_max, sigma_data, rho
        self.num_timesteps, self.kind, self.prediction_type = num_timesteps, kind, kind
        self.least_sigma = sigma_min if kind == "consistency" else 0.0
        self.prediction = Preconditioned(sigma_data, self.least_sigma, -1.0 if kind == "edm_v" else 1.0)
        own: dict[str, Any] = {"spacing": "karras", "clip_sample": False}
        if kind == "consistency":
            own = {"spacing": "list", "clip_sample": True, "clip_range": 1.0, "renoise": True, "start": "noise"}
        self.sampler_settings = {**own, **(sampler_settings or {})}

    def signal_and_sigma(self, timesteps: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return 1 and sigma."""
        sigma = self._sigma(timesteps).to(dtype)
        return torch.ones_like(sigma), sigma

    def _sigma(self, timesteps: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        place = timesteps.double() / (self.num_timesteps - 1)
        sigma: Tensor = (low + place * (high - low)) ** self.rho
        return sigma

    def _timestep(self, sigma: float) -> float:
        low, high, root = (value ** (1 / self.rho) for value in (self.sigma_min, self.sigma_max, sigma))
        place: float = (root - low) / (high - low)
        return place * (self.num_timesteps - 1)

    def as_timesteps(self, values: Tensor) -> Tensor:
        """Return them rounded down onto the list, on which T_phi counts, in double precision."""
        return values.double().floor()

    def network_time(self, timesteps: Tensor) -> Tensor:
        """Return log(sigma) / 4, in single precision; for a consistency model a thousand times that."""
        return (self._sigma(timesteps).log() * (250.0 if self.kind == "consistency" else 0.25)).float()

    def network_input(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return c_in x_t, of about unit variance."""
        sigma = self.coefficients(timesteps, noisy)[1]
        return noisy / (sigma.square() + self.sigma_data**2).sqrt()

    def grid(self, sampler: Sampler) -> list[Level]:
        """Return the levels of diffusers' EDMEuler, or of a consistency model's own scheduler ("list").

        Raises:
            ValueError: an unknown spacing, or more steps than there are levels.
        """
        total, steps = self.num_timesteps, sampler.steps
        if steps > total:
            raise ValueError(f"expected at most {total} steps, the schedule's length, got {steps}.")
        if sampler.spacing == "karras":
            sigmas = grids.karras(self.sigma_min, self.sigma_max, steps, self.rho)
        elif sampler.spacing == "exponential":
            sigmas = grids.exponential(self.sigma_min, self.sigma_max, steps)
        elif sampler.spacing == "list":  # every (T // steps)-th level from the noisiest on
            places = torch.tensor([total - 1 - i * (total // steps) for i in range(steps)], dtype=torch.float64)
            sigmas = self._sigma(places).tolist()
        else:
            raise ValueError(
                f"spacing must be karras, exponential or list for a model of EDM's family, got '{sampler.spacing}'."
            )
        ends = {None: 0.0, True: 0.0, False: self.sigma_min}
        return [*(Level(self._timestep(s), 1.0, s) for s in sigmas), Level(0, 1.0, ends[sampler.set_alpha_to_one])]
