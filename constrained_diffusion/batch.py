"""The one batch contract of all domains, and the noisy batch that a step makes of it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from constrained_diffusion.condition import Condition


class Batch(NamedTuple):
    """What every training and validation step receives."""

    clean: Tensor  #: `(B, *shape)`, in the data's own units
    condition: Condition | None = None  #: of the denoiser, one row per sample
    mask: Tensor | None = None  #: `(B, L)`, True where a token exists
    rows: Tensor | None = None  #: `(B,)`, each row's place in the data set; keys the fixed noise of held-out losses
    target: Tensor | None = None  #: what a `Supervised` network should say of each row, such as a label
    latent: Tensor | None = None  #: `(B, *shape)`, the clean sample in the network's units, where that is known
    teacher: Condition | None = None  #: the condition of the frozen model, where that is another


class Seeds(NamedTuple):
    """The samples that an evaluation or a prediction draws."""

    seeds: Tensor  #: `(B,)`, int64
    condition: Condition | None = None  #: of the denoiser, one row per sample


class NoisyBatch(NamedTuple):
    """A batch with its noise, made once per step: x_t of each row, and all that it was made of."""

    clean: Tensor  #: `(B, *shape)`, x_0 in the network's units
    data: Tensor  #: `(B, *shape)`, the same in the data's own units
    noise: Tensor  #: `(B, *shape)`, eps
    noisy: Tensor  #: `(B, *shape)`, x_t
    timesteps: Tensor  #: `(B,)`, or `(B, L)` where tokens have noise levels of their own
    highest: Tensor  #: `(B,)` on the host, the largest timestep of each row: rows are chosen without asking the device
    condition: Condition | None = None  #: of the denoiser, one row per sample
    rows: Tensor | None = None  #: `(B,)`, each row's place in the data set
    teacher: Condition | None = None  #: the condition of the frozen model, where that is another
