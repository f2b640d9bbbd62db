"""The neural Bradley-Terry model: s_BT(x), the log merit of a molecule, from its tokens, hard or soft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from constrained_diffusion.domains.polymers.preferences.bradley_terry import log_likelihood
from constrained_diffusion.domains.polymers.vocabulary import Vocabulary
from constrained_diffusion.runtime.stored_networks import load_network, storable

TYPICAL = 20.0  #: tokens of a molecule: sums over its places are divided by it


@storable
class MeritCNN(nn.Module):
    """Residual convolutions over the tokens, their sum and their mean over the molecule, and an MLP.

    It takes shares of tokens as well as tokens, so that it judges predicted clean samples and passes gradients to them.
    A place counts by its share of not being END in the sums; norms see all places, so that sequences must be as long as
    in training.

    Args:
        tokens: the vocabulary without END; see `Vocabulary`.
        notation: of the tokens; see `polymers.notation`.
        width: channels.
        depth: residual convolutions.
        kernel: places that a convolution sees, odd.
        dropout: in training.

    Raises:
        ValueError: fewer than one token, or an even kernel.

    Example:
        >>> MeritCNN(["C", "O"])(torch.rand(5, 2, 3, 12).softmax(-2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        tokens: list[str],
        notation: str = "valence",
        width: int = 64,
        depth: int = 2,
        kernel: int = 5,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if not tokens or kernel % 2 == 0:
            raise ValueError(f"MeritCNN expects at least one token and an odd kernel, got {len(tokens)} and {kernel}.")
        self.settings: dict[str, Any] = {
            "tokens": list(tokens),
            "notation": notation,
            "width": width,
            "depth": depth,
            "kernel": kernel,
            "dropout": dropout,
        }
        self.vocabulary = Vocabulary(tokens, notation)
        self.into = nn.Conv1d(len(self.vocabulary), width, kernel, padding=kernel // 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, width), nn.SiLU(), nn.Dropout(dropout),
                nn.Conv1d(width, width, kernel, padding=kernel // 2),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.out = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Dropout(dropout), nn.Linear(2 * width, width), nn.SiLU(),
            nn.Dropout(dropout), nn.Linear(width, 1),
        )  # fmt: skip

    def forward(self, clean: Tensor) -> Tensor:
        """Return the log merits of `clean` `(..., V, L)`, shares of tokens in [0, 1], shape `(...)`.

        Raises:
            ValueError: another number of channels than the vocabulary has tokens.
        """
        if clean.ndim < 3 or clean.shape[-2] != len(self.vocabulary):
            raise ValueError(
                f"MeritCNN expects samples of {len(self.vocabulary)} channels, one per token of its vocabulary, got "
                f"the shape {tuple(clean.shape)}; use the one-hot coding and the vocabulary that it was trained with."
            )
        rows = clean.flatten(0, -3)
        hidden = self.into(rows)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        there = 1 - rows[:, :1]
        total = (hidden * there).sum(2)
        pooled = torch.cat([total / TYPICAL, total / there.sum(2).clamp(min=1)], dim=1)
        merits: Tensor = self.out(pooled)
        return merits.view(clean.shape[:-2])


class PairLoss(nn.Module):
    """Minus the mean Bradley-Terry log-likelihood of outcomes `(B,)`, given log merits `(B, 2)`.

    Args:
        level: weight of the squared mean merit. Outcomes tell differences alone; this makes 0 the average molecule.
    """

    def __init__(self, level: float = 0.01) -> None:
        super().__init__()
        self.level = level

    def forward(self, merits: Tensor, outcomes: Tensor) -> Tensor:
        """Return a scalar, at least 0."""
        likelihood = log_likelihood(merits[:, 0], merits[:, 1], outcomes.to(merits)).mean()
        return self.level * merits.mean().square() - likelihood


def load_merits(source: str | Path) -> MeritCNN:
    """Read a preference model, frozen and in eval mode, from a zoo name or a folder that a fit exported.

    Raises:
        ValueError, FileNotFoundError: see `saved.load_network`.
    """
    return load_network(source, MeritCNN, "preference model").requires_grad_(False).eval()
