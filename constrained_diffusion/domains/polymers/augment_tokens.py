"""Noise on token sequences, so that a preference model can judge what a denoiser predicts; keyed as in `augment`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from constrained_diffusion.runtime.randomness import Keys, keyed_normal, keyed_uniform

LEVEL, VALUES = 0x70, 0x71  # streams of random numbers


class KeyedTokenNoise(nn.Module):
    """Replaces some sequences by shares of tokens, those that each place would be given from its own noisy value.

    A sequence in -1 and 1 is noised to a level of the cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672), and
    Bayes' rule, every token being as likely, gives softmax(2 sqrt(abar) x_t / (1 - abar)).

    Args:
        share: of the sequences that are noised.
        most: the highest level, as a share of the schedule.

    Raises:
        ValueError: a setting outside [0, 1], or a level at which nothing is left.
    """

    def __init__(self, share: float = 0.3, most: float = 0.6) -> None:
        super().__init__()
        if not 0 <= share <= 1 or not 0 <= most < 1:
            raise ValueError(f"KeyedTokenNoise expects share in [0, 1] and most in [0, 1), got {share} and {most}.")
        self.share, self.most = share, most

    def forward(self, clean: Tensor, keys: Keys) -> Tensor:
        """Return `clean` `(B, n, V, L)`, in [0, 1], with some of its n sequences noised; same shape."""
        count = clean.shape[1]
        draws = keyed_uniform(keys, LEVEL, 2 * count, clean).view(-1, 2, count, 1, 1)
        chosen, level = draws[:, 0] < self.share, self.most * draws[:, 1]
        signal = torch.cos(math.pi / 2 * (level + 0.008) / 1.008).clamp(max=0.9999)
        white = keyed_normal([(*key, VALUES) for key in keys], clean.shape[1:]).to(clean)
        variance = 1 - signal.square()
        noisy = signal * (2 * clean - 1) + variance.sqrt() * white
        return torch.where(chosen, (2 * signal * noisy / variance).softmax(2), clean)
