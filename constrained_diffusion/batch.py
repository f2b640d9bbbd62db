"""The one batch contract of all domains, and the noisy batch that a step makes of it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """What every training and validation step receives."""

    clean: Tensor  #: `(B, *shape)`, in the data's own units
    condition: Tensor | None = None  #: what the denoiser is conditioned on, or a label for a classifier
    mask: Tensor | None = None  #: `(B, L)`, True where a token exists
    rows: Tensor | None = None  #: `(B,)`, each row's place in the data set; keys the fixed noise of held-out losses


class NoisyBatch(NamedTuple):
    """A batch with its noise, made once per step: x_t of each row, and all that it was made of."""

    clean: Tensor  #: `(B, *shape)`, x_0 in the network's units
    data: Tensor  #: `(B, *shape)`, the same in the data's own units
    noise: Tensor  #: `(B, *shape)`, eps
    noisy: Tensor  #: `(B, *shape)`, x_t
    timesteps: Tensor  #: `(B,)`, or `(B, L)` where tokens have noise levels of their own
    highest: Tensor  #: `(B,)` on the host, the largest timestep of each row: rows are chosen without asking the device
    condition: Tensor | None = None  #: what the denoiser is conditioned on
    rows: Tensor | None = None  #: `(B,)`, each row's place in the data set
