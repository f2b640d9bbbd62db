"""Networks for plans whose every token has a noise level of its own: a transformer, and MLPs around a recurrent state.

Plans are `(B, L, S, C)`; the idea is Diffusion Forcing's (Chen et al. 2024, arXiv 2407.01392). Both networks are models
of diffusers' kind, so that their config travels with their weights.
"""

from __future__ import annotations

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.domains.mazes.splines import CYCLES, Splines
from constrained_diffusion.runtime.stored_networks import storable


@storable
class TransformerPlanner(ModelMixin, ConfigMixin):
    """A transformer over all tokens at once; it sees the whole plan, so that start and goal can be held.

    It predicts the clean sample as the most likely spline of sqrt(abar) x_t + sqrt(1 - abar) F(x_t, t), where F is the
    transformer (Karras et al. 2022, arXiv 2206.00364, sec. 5, for data of unit variance), which in turn sees x_t as the
    most likely spline; see `splines`.

    Args:
        sample_shape: (L, S, C) of a plan.
        width: of the tokens.
        depth: number of layers.
        heads: of attention.
        feedforward: hidden units of a layer.
        knots: frames between the knots of the splines.
        beta_schedule: of the noise that it is made for, as in diffusers.DDPMScheduler.
        num_train_timesteps: of that schedule.
    """

    alphas_cumprod: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_shape: tuple[int, int, int] = (22, 20, 2),
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        feedforward: int = 512,
        knots: int = 8,
        beta_schedule: str = "linear",
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tokens, frames, channels = sample_shape
        self.width = width
        # Tokens see, and write into, the frames of their neighbours: so plans hold together where tokens meet.
        kernel, stride, padding = 3 * frames, frames, frames
        self.splines = Splines(tokens, frames, knots)
        self.into = nn.Conv1d((3 + 2 * len(CYCLES)) * channels, width, kernel, stride, padding)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        layer = nn.TransformerEncoderLayer(width, heads, feedforward, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.ConvTranspose1d(width, channels, kernel, stride, padding)
        schedule = DiffusersSchedule({"num_train_timesteps": num_train_timesteps, "beta_schedule": beta_schedule})
        self.register_buffer("alphas_cumprod", schedule.alphas_cumprod)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the output for `sample` `(B, L, S, C)` at `timestep` `(B,)` or `(B, L)`, shape of `sample`."""
        levels = timestep if timestep.ndim == 2 else timestep[:, None].expand(sample.shape[:2])
        abar = self.alphas_cumprod[levels]
        seen = self.splines.views(sample, abar)
        hidden = self.layers(self.into(seen.mT).mT + self.place + self.level(embedded(levels, sample, self.width)))
        signal, noise = (part.sqrt()[..., None, None].to(sample.dtype) for part in (abar, 1 - abar))
        rough = signal * sample + noise * self.out(hidden.mT).mT.view(sample.shape)
        return self.splines.smooth(rough, 1 / (1 - abar))


@storable
class RecurrentPlanner(ModelMixin, ConfigMixin):
    """Residual MLPs before and after a GRU cell that carries a state from token to token, as in the paper's base.

    Token i is denoised from the state after the tokens before it. The state before the first token is zero.

    Args:
        sample_shape: (L, S, C) of a plan.
        network_size: width of the noise level's embedding; the MLPs are 32 times as wide. 16 is the paper's.
        state: width of the recurrent state.
        mlp_layers: of the MLP before the cell, and of that after it.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_shape: tuple[int, int, int] = (62, 10, 6),
        network_size: int = 16,
        state: int = 128,
        mlp_layers: int = 4,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        token, wide = sample_shape[1] * sample_shape[2], 32 * network_size
        self.network_size, self.state = network_size, state
        self.level = nn.Sequential(
            nn.Linear(network_size, network_size), nn.GELU(), nn.Linear(network_size, network_size)
        )
        self.before = _mlp(state + token + network_size, wide, state, mlp_layers)
        self.cell = nn.GRUCell(state, state)
        self.after = _mlp(state, wide, state, mlp_layers)
        self.out = nn.Linear(state, token)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the output for `sample` `(B, L, S, C)` at `timestep` `(B,)` or `(B, L)`, shape of `sample`."""
        given = torch.cat([sample.flatten(2), self.level(embedded(timestep, sample, self.network_size))], dim=-1)
        state, outputs = sample.new_zeros(len(sample), self.state), []
        for token in given.unbind(1):
            state = self.after(self.cell(self.before(torch.cat([state, token], dim=-1)), state))
            outputs.append(self.out(state))
        return torch.stack(outputs, dim=1).view(sample.shape)


def embedded(timestep: Tensor, sample: Tensor, width: int) -> Tensor:
    """Return the sinusoidal embedding of each token's noise level, `(B, L, width)`, for `(B,)` or `(B, L)`."""
    levels = timestep if timestep.ndim == 2 else timestep[:, None].expand(sample.shape[:2])
    flat: Tensor = get_timestep_embedding(levels.reshape(-1), width)
    return flat.view(*levels.shape, width).to(sample.dtype)


class _Residual(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inside, outside), nn.GELU(), nn.Linear(outside, outside))
        self.shortcut = nn.Identity() if inside == outside else nn.Linear(inside, outside)

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.gelu(self.shortcut(values) + self.mlp(values))


def _mlp(inside: int, wide: int, outside: int, layers: int) -> nn.Sequential:
    middle = [_Residual(wide, wide) for _ in range(layers - 2)]
    return nn.Sequential(_Residual(inside, wide), *middle, nn.Linear(wide, outside))
