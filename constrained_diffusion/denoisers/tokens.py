"""A network for sequences of tokens, `(B, V, L)`: it predicts how likely each token is at each place.

| what | code | shape |
|---|---|---|
| x_t, one channel per token, 1 or -1 where there is no noise | `sample` | `(B, V, L)` |
| log p(x_t given the token) up to a constant, 2 sqrt(abar) x_t / (1 - abar) | `evidence` | `(B, V, L)` |
| E[x_0 given x_t] = 2 p - 1, of shares p of tokens | what `forward` returns | `(B, V, L)` |

What a place says of its own token is Gaussian and known, so Bayes' rule adds it to what the network says: p is
softmax(evidence + F(x_t, t)). F has the rest to learn, what the other places say of this one; and at low noise, where
each place speaks for itself, an error of F does no harm.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.precision import never_half


class TokenTransformer(ModelMixin, ConfigMixin):
    """A transformer over all places of a sequence at once.

    Args:
        sample_shape: (V, L): the size of the vocabulary and the length of a sequence.
        width: of the hidden places.
        depth: number of layers.
        heads: of attention.
        feedforward: hidden units of a layer.
        kernel: places that the first layer sees together, odd.
        beta_schedule: of the noise that it is made for, as in diffusers.DDPMScheduler.
        num_train_timesteps: of that schedule.
    """

    alphas_cumprod: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_shape: tuple[int, int] = (18, 36),
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        feedforward: int = 512,
        kernel: int = 5,
        beta_schedule: str = "squaredcos_cap_v2",
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tokens, length = sample_shape
        self.width = width
        self.into = nn.Conv1d(2 * tokens, width, kernel, padding=kernel // 2)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        layer = nn.TransformerEncoderLayer(width, heads, feedforward, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, tokens)
        schedule = DiffusersSchedule({"num_train_timesteps": num_train_timesteps, "beta_schedule": beta_schedule})
        self.register_buffer("alphas_cumprod", schedule.alphas_cumprod)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        alphas = self.alphas_cumprod
        super()._apply(fn, recurse)  # type: ignore[misc]
        self.alphas_cumprod = never_half(fn)(alphas)  # whose difference from 1 half precision would round away
        return self

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the clean sample expected for `sample` `(B, V, L)` at `timestep` `(B,)`; shape of `sample`."""
        abar = self.alphas_cumprod[timestep][:, None, None]
        evidence = (2 * abar.sqrt() * sample / (1 - abar)).to(sample.dtype)
        seen = torch.cat([sample, 2 * evidence.softmax(1) - 1], dim=1)
        level = self.level(get_timestep_embedding(timestep, self.width).to(sample.dtype))
        hidden = self.layers(self.into(seen).mT + self.place + level[:, None])
        shares: Tensor = (evidence + self.out(hidden).mT).softmax(1)
        return 2 * shares - 1
