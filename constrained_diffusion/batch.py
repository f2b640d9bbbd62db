"""The one batch contract of all domains."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """What every training and validation step receives."""

    clean: Tensor  #: `(B, *shape)`, in the data's own units
    condition: Tensor | None = None  #: what the denoiser is conditioned on, or a label for a classifier
    mask: Tensor | None = None  #: `(B, L)`, True where a token exists
    rows: Tensor | None = None  #: `(B,)`, each row's place in the data set; keys the fixed noise of held-out losses
