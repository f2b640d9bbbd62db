"""Reward of what people prefer: the log merit of a Bradley-Terry model."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn

from constrained_diffusion.domains.polymers.preferences.model import load_merits
from constrained_diffusion.objectives import Reward, register


@register()
class BradleyTerryMerit(Reward):
    """r(x) = s_BT(x), the log merit (P section 4.3): of two samples the one is preferred with odds exp(r_1 - r_2).

    What is judged are tokens: each place counts as its likeliest one, and the gradient passes straight through to its
    shares (Bengio et al. 2013, arXiv 1308.3432). Judged by its shares themselves, a network learns to please by small
    ones of other tokens, which are gone when the sample is read.

    As a constraint, g(x) = delta - s_BT(x), take `RewardAtLeast` with delta as its threshold. The model is frozen and
    in eval mode whatever `.train()` is called.

    Args:
        model: a zoo name such as "polymer_preference", a folder that `lightning fit --config preference.yaml` exported,
            or the network itself, which maps `(B, V, L)`, one-hot, to `(B,)`; of a network a copy is kept.

    Raises:
        ValueError, FileNotFoundError: there is no such model, or it is damaged.
    """

    def __init__(self, model: str | nn.Module) -> None:
        super().__init__()
        given = load_merits(model) if isinstance(model, str) else copy.deepcopy(model)
        self.model = given.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the reward alone; the model stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def check_data(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the model cannot take samples of `shape` (without batch)."""
        like = next(self.model.parameters(), torch.empty(0))
        self.model(like.new_zeros((1, *shape)))

    def forward(self, clean: Tensor) -> Tensor:
        """Return s_BT of `clean` `(B, V, L)`, shares of tokens in [0, 1], shape `(B,)`, any real number."""
        tokens = nn.functional.one_hot(clean.argmax(-2), clean.shape[-2]).mT.to(clean)
        merits: Tensor = self.model(tokens + (clean - clean.detach()))
        return merits
