"""The family of DDPM: s = sqrt(alpha-bar), sigma = sqrt(1 - alpha-bar) (Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from constrained_diffusion.diffusion import grids
from constrained_diffusion.diffusion.noise_schedule import Level, NoiseSchedule
from constrained_diffusion.diffusion.prediction_types import NAMED
from constrained_diffusion.runtime.precision import keep_float32

if TYPE_CHECKING:
    from constrained_diffusion.diffusion.sampler import Sampler

VPPrediction = Literal["epsilon", "sample", "v_prediction"]


class VariancePreserving(NoiseSchedule):
    """alpha-bar as a buffer; timesteps are its indices, and fractions of them where a sampler's grid has such.

    Args:
        alphas_cumprod: alpha-bar_t for t = 0 .. T-1, shape `(T,)`, in [0, 1], never rising.
        prediction_type: what the network returns: the noise, the clean sample, or v = sqrt(abar) eps - sqrt(1-abar) x0.
        sampler_settings: arguments of `Sampler` in place of the family's: trailing steps onto alpha-bar = 1, clipped.
        original_steps: of a latent consistency model: the number of levels that it was distilled at.
        boundary_scaling: of a latent consistency model: how fast, in timesteps, its clean sample leaves x_t itself
            (Luo et al. 2023, arXiv 2310.04378, eq. 8); None for all other models.

    Raises:
        ValueError: alpha-bar is not such a sequence, the prediction type is unknown, or the noise is to be predicted
            where there is nothing else.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        alphas_cumprod: Tensor | Sequence[float],
        prediction_type: VPPrediction = "epsilon",
        sampler_settings: dict[str, Any] | None = None,
        original_steps: int = 50,
        boundary_scaling: float | None = None,
    ) -> None:
        super().__init__()
        abar = torch.as_tensor(alphas_cumprod, dtype=torch.float32)
        valid = abar.ndim == 1 and len(abar) > 0 and bool(((abar >= 0) & (abar <= 1)).all())
        if not valid or bool((abar.diff() > 0).any()):
            values = f"values from {abar.flatten()[0]:.3g} to {abar.flatten()[-1]:.3g}" if abar.numel() else "no values"
            raise ValueError(
                "VariancePreserving expects alphas_cumprod of shape (T,), in [0, 1] and never rising; "
                f"got shape {tuple(abar.shape)} with {values}."
            )
        if prediction_type not in get_args(VPPrediction):
            raise ValueError(
                f"prediction_type must be one of {', '.join(get_args(VPPrediction))}, got '{prediction_type}'; for "
                "a flow-matching model take FlowMatching."
            )
        if prediction_type == "epsilon" and abar[-1] == 0:
            raise ValueError(
                "alpha-bar ends in 0 (rescale_betas_zero_snr), where a predicted noise says nothing of the clean "
                "sample: expected prediction_type v_prediction or sample; give the one that the model was trained with."
            )
        self.prediction_type, self.prediction = prediction_type, NAMED[prediction_type]
        self.num_timesteps = len(abar)
        self.sampler_settings = dict(sampler_settings or {})
        self.original_steps, self.boundary_scaling = original_steps, boundary_scaling
        self.register_buffer("alphas_cumprod", abar)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # In half precision alpha-bar of small t would be 1, and sigma 0.
        return super()._apply(keep_float32(fn), recurse)  # type: ignore[no-untyped-call, no-any-return]

    def signal_and_sigma(self, timesteps: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return both; between two levels sigma / s is linear, as in diffusers' Euler schedulers."""
        if not timesteps.is_floating_point():
            abar = self.alphas_cumprod[timesteps].to(dtype)
            return abar.sqrt(), (1 - abar).sqrt()
        signal, sigma = _between(self.alphas_cumprod, timesteps)
        return signal.to(dtype), sigma.to(dtype)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return alpha-bar / (1 - alpha-bar), shape of `timesteps`."""
        abar = self.alphas_cumprod[timesteps]
        return abar / (1 - abar)

    def as_timesteps(self, values: Tensor) -> Tensor:
        """Return them rounded down: the network was trained at whole timesteps."""
        return values.long()

    def to_clean(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return x-hat(x_t, t), not clamped; that of a latent consistency model is x_t itself at t = 0."""
        clean = super().to_clean(output, noisy, timesteps)
        if self.boundary_scaling is None:
            return clean
        scaled, variance = timesteps.to(noisy).reshape(-1, *(1,) * (noisy.ndim - 1)) * self.boundary_scaling, 0.25
        return scaled / (scaled.square() + variance).sqrt() * clean + variance / (scaled.square() + variance) * noisy

    def grid(self, sampler: Sampler) -> list[Level]:
        """Return the levels that diffusers' DDIM, Euler and LCM schedulers give, by `sampler.spacing`.

        Raises:
            ValueError: more steps than there are levels, an unknown spacing, or an offset that leads out of the list.
        """
        total, steps, spacing = self.num_timesteps, sampler.steps, sampler.spacing or "trailing"
        if steps > total:
            raise ValueError(f"expected at most {total} steps, the schedule's length, got {steps}.")
        if spacing == "lcm":
            times: list[float] = grids.lcm(total, self.original_steps, steps)
        elif spacing in grids.SIGMAS:
            ratios = _ratio(self.alphas_cumprod.double()).cpu().numpy()
            wanted = grids.SIGMAS[spacing](float(ratios[0]), float(ratios[-1]), steps)
            times = np.interp(wanted, ratios, np.arange(total)).tolist()
        else:
            times = grids.timesteps(spacing, total, steps, sampler.steps_offset or 0)
        end = 1.0 if sampler.set_alpha_to_one in (True, None) else float(self.alphas_cumprod[0])
        return [*map(self._level, times), Level(0, math.sqrt(end), math.sqrt(1 - end))]

    def _level(self, timestep: float) -> Level:
        if timestep == int(timestep):
            abar = float(self.alphas_cumprod[int(timestep)])
            return Level(int(timestep), math.sqrt(abar), math.sqrt(1 - abar))
        signal, sigma = _between(self.alphas_cumprod.cpu(), torch.tensor(timestep, dtype=torch.float64))
        return Level(timestep, float(signal), float(sigma))


def _ratio(abar: Tensor) -> Tensor:
    return ((1 - abar) / abar).sqrt()


def _between(abar: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    low = timesteps.floor().clamp(0, len(abar) - 2).long()
    below, above = (_ratio(abar[t].to(timesteps.dtype)) for t in (low, low + 1))
    ratio = torch.lerp(below, above, timesteps - low)
    signal = (1 + ratio.square()).rsqrt()
    return signal, ratio * signal
