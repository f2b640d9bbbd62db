"""What a denoiser says about a noisy sample, and what calls one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """What one call of a denoiser says about `noisy`; every tensor has its shape."""

    output: Tensor  #: the network's raw output, in its own prediction type
    noise: Tensor  #: epsilon_theta(x_t, t)
    clean: Tensor  #: x-hat(x_t, t), in network units, clamped to the data range with a straight-through gradient


Predict = Callable[[Tensor, Tensor], Prediction]  #: (x_t, timesteps) -> Prediction, a denoiser with its condition bound
