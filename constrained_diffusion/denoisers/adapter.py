"""One adapter that makes any pretrained network a noise predictor with a schedule and units."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.runtime.probing import undisturbed


class Denoiser(nn.Module):
    """A network, its noise schedule and its normaliser.

    Args:
        network: any module called as `network(x_t, t)` or, with conditioning, as `network(x_t, t, condition)`
            (diffusers' `encoder_hidden_states` or `class_labels` are found by name), returning a tensor or an object
            with `.sample`.
        noise_schedule: alpha-bar and the prediction type.
        normalizer: from the data's units to the network's; by default images in [0, 1] to [-1, 1].
        sample_shape: shape of one sample without batch; read from a diffusers network's config when not given.

    Raises:
        ValueError: the sample shape is neither given nor in the network's config.
    """

    def __init__(
        self,
        network: nn.Module,
        noise_schedule: NoiseSchedule,
        normalizer: Normalizer | None = None,
        sample_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.noise_schedule = noise_schedule
        self.normalizer = normalizer or Normalizer(mean=0.5, std=0.5, low=0.0, high=1.0)
        self.sample_shape = tuple(sample_shape or _shape_from_config(network))
        parameters = inspect.signature(network.forward).parameters
        self._condition_name = next((n for n in ("encoder_hidden_states", "class_labels") if n in parameters), None)

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the network's raw output for `noisy` `(B, *shape)` at `timesteps` `(B,)` or `(B, L)`."""
        return self.call(self.network, noisy, timesteps, condition)

    def call(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the output of `network`, a module of the same kind as ours: its EMA, or a frozen copy.

        It is called in the precision of its weights; what is returned has that of `noisy`.

        Raises:
            TypeError: it returns no tensor of floats, and no object with one as `.sample`.
            ValueError: what it returns has another shape than `noisy`, to which it would be broadcast.
        """
        given = noisy.to(next((p.dtype for p in network.parameters() if p.is_floating_point()), noisy.dtype))
        if condition is None:
            result = network(given, timesteps)
        elif self._condition_name:
            result = network(given, timesteps, **{self._condition_name: condition})
        else:
            result = network(given, timesteps, condition)
        # under autocast the network may answer in half precision
        return checked_output(network, result, noisy).to(noisy.dtype)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, condition: Tensor | None = None, network: nn.Module | None = None
    ) -> Prediction:
        """Return output, noise and clean sample for `noisy`, by our own network or by `network`."""
        output = self.call(self.network if network is None else network, noisy, timesteps, condition)
        return self.interpret(output, noisy, timesteps)

    def interpret(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Prediction:
        """Read a raw output as a noise and a clean sample."""
        schedule = self.noise_schedule
        clean = self.normalizer.clamp(schedule.to_clean(output, noisy, timesteps))
        return Prediction(output, schedule.to_noise(output, noisy, timesteps), clean)

    def check_data(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError or TypeError if samples of `shape` (without batch) do not fit the network.

        It is tried on two rows of zeros; random numbers and the network's mode stay as they were.
        """
        if tuple(shape) != self.sample_shape:
            raise ValueError(
                f"the denoiser expects samples of shape {self.sample_shape} (channels, height, width), but the data "
                f"has {tuple(shape)}; resize the data, or choose a model that was trained on data of that shape."
            )
        weight = next((p for p in self.network.parameters() if p.is_floating_point()), torch.empty(0))
        noisy = torch.zeros(2, *shape, device=weight.device, dtype=weight.dtype)
        with undisturbed(self.network, weight.device):
            try:
                result = self.network(noisy, torch.zeros(2, dtype=torch.long, device=weight.device))
            except Exception:  # it may want a condition, or a time per token, of a batch: the first call tells
                return
        checked_output(self.network, result, noisy)


def checked_output(network: nn.Module, result: Any, noisy: Tensor) -> Tensor:
    """Return the tensor in what `network` returned for `noisy` `(B, *shape)`; raises as `Denoiser.call`."""
    name, output = type(network).__name__, result if isinstance(result, Tensor) else getattr(result, "sample", None)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        got = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else f"a {type(result).__name__}"
        raise TypeError(
            f"{name} must return a tensor of floats, or an object with one as .sample, but returned {got}; wrap it in "
            "a module whose forward returns that tensor."
        )
    if output.shape != noisy.shape:
        raise ValueError(
            f"{name} must return the shape of its input, {tuple(noisy.shape)}, but returned {tuple(output.shape)}; "
            "check its number of output channels and its padding."
        )
    return output


def _shape_from_config(network: nn.Module) -> tuple[int, ...]:
    config = getattr(network, "config", None)
    if config is not None and config.get("sample_shape"):
        return tuple(config["sample_shape"])
    if config is None or "in_channels" not in config or not config.get("sample_size"):
        raise ValueError(
            f"sample_shape must be given for a {type(network).__name__}: the shape of one sample without batch, "
            "for example (1, 28, 28)."
        )
    size = config["sample_size"]
    shape = (config["in_channels"], *((size, size) if isinstance(size, int) else size))
    if not all(type(side) is int and side > 0 for side in shape):
        raise ValueError(f"the network's config gives a sample the shape {shape}: expected integers above 0.")
    return shape
