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
        between: what is linear between two timesteps: "linear", sigma / s itself, as in diffusers' Euler schedulers, or
            "log", its logarithm, as there with Karras or exponential levels.

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
        between: Literal["linear", "log"] = "linear",
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
        self.original_steps, self.boundary_scaling, self.between = original_steps, boundary_scaling, between
        self.register_buffer("alphas_cumprod", abar)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # In half precision alpha-bar of small t would be 1, and sigma 0.
        return super()._apply(keep_float32(fn), recurse)  # type: ignore[no-untyped-call, no-any-return]

    def signal_and_sigma(self, timesteps: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return both; see `between` for fractions of timesteps."""
        if not timesteps.is_floating_point():
            abar = self.alphas_cumprod[timesteps].to(dtype)
            return abar.sqrt(), (1 - abar).sqrt()
        signal, sigma = _between(self.alphas_cumprod, timesteps, self.between)
        return signal.to(dtype), sigma.to(dtype)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return alpha-bar / (1 - alpha-bar), shape of `timesteps`."""
        if timesteps.is_floating_point():
            return super().snr(timesteps)
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
        skip, out = self._boundary(self.boundary_scaling, timesteps, noisy)
        return skip * noisy + out * clean

    def from_clean(self, clean: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return the output that means `clean`, where any does."""
        if self.boundary_scaling is not None:
            skip, out = self._boundary(self.boundary_scaling, timesteps, noisy)
            clean = (clean - skip * noisy) / out.masked_fill(out == 0, torch.inf)
        return super().from_clean(clean, noisy, timesteps)

    @staticmethod
    def _boundary(scaling: float, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        scaled, variance = timesteps.to(torch.promote_types(torch.float32, like.dtype)) * scaling, 0.25
        scaled = scaled.reshape(scaled.shape + (1,) * (like.ndim - scaled.ndim))
        above = scaled.square() + variance
        return (variance / above).to(like.dtype), (scaled / above.sqrt()).to(like.dtype)

    def grid(self, sampler: Sampler) -> list[Level]:
        """Return the levels that diffusers' DDIM, Euler, DPMSolver and LCM schedulers give, by `sampler.spacing`.

        "karras" and "exponential" go over all levels; "karras_leading" goes between the ends of "leading".

        Raises:
            ValueError: more steps than there are levels, an unknown spacing, an offset that leads out of the list, or
                sigmas of a schedule whose largest is infinite.
        """
        total, steps, spacing = self.num_timesteps, sampler.steps, sampler.spacing or "trailing"
        if steps > total:
            raise ValueError(f"expected at most {total} steps, the schedule's length, got {steps}.")
        curve, _, base = spacing.partition("_")
        if curve in grids.SIGMAS:
            times = [total - 1, 0] if not base else grids.timesteps(base, total, steps, sampler.steps_offset or 0)
            times = self._along(curve, int(times[-1]), int(times[0]), steps)
        elif spacing == "lcm":
            times = grids.lcm(total, self.original_steps, steps)
        else:
            times = grids.timesteps(spacing, total, steps, sampler.steps_offset or 0)
        end = 1.0 if sampler.set_alpha_to_one in (True, None) else float(self.alphas_cumprod[0])
        return [*map(self._level, times), Level(0, math.sqrt(end), math.sqrt(1 - end))]

    def _along(self, curve: str, low: int, high: int, steps: int) -> list[float]:
        ratios = _ratio(self.alphas_cumprod.double()).cpu().numpy()
        if np.isinf(ratios[high]):
            raise ValueError(
                f"spacing '{curve}' expects a largest sigma: it is infinite where alpha-bar ends in 0; take trailing."
            )
        wanted = np.asarray(grids.SIGMAS[curve](float(ratios[low]), float(ratios[high]), steps))
        if self.between == "log":
            wanted, ratios = np.log(wanted), np.log(ratios)
        times: list[float] = np.interp(wanted, ratios, np.arange(self.num_timesteps)).tolist()
        return times

    def _level(self, timestep: float) -> Level:
        if timestep == int(timestep):
            abar = float(self.alphas_cumprod[int(timestep)])
            return Level(int(timestep), math.sqrt(abar), math.sqrt(1 - abar))
        at = torch.tensor(timestep, dtype=torch.float64)
        signal, sigma = _between(self.alphas_cumprod.cpu(), at, self.between)
        return Level(timestep, float(signal), float(sigma))


def _ratio(abar: Tensor) -> Tensor:
    return ((1 - abar) / abar).sqrt()


def _between(abar: Tensor, timesteps: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    low = timesteps.floor().clamp(0, len(abar) - 2).long()
    below, above = (_ratio(abar[t].to(timesteps.dtype)) for t in (low, low + 1))
    share = timesteps - low
    ratio = below.log().lerp(above.log(), share).exp() if scale == "log" else below.lerp(above, share)
    signal = (1 + ratio.square()).rsqrt()
    return signal, ratio * signal
