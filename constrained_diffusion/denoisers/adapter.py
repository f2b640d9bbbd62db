"""One adapter that makes any pretrained network a denoiser with a schedule and units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained_diffusion.condition import Condition, arguments, join
from constrained_diffusion.denoisers.calls import call_of, classes_of, names_of
from constrained_diffusion.denoisers.shapes import check_sides, shape_from_config
from constrained_diffusion.diffusion.codec import Codec
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.prediction import Predict, Prediction
from constrained_diffusion.runtime.probing import undisturbed


class Denoiser(nn.Module):
    """A network, its noise schedule, and the codec between its space and the data.

    Args:
        network: any module called as `network(x_t, t, **condition)`, t by name where it has a `timestep`; it returns a
            tensor, or an object, a dict or a tuple with one: `.sample`, `["sample"]` or the first.
        noise_schedule: the family of the model, its levels and its prediction type.
        codec: between the data's units and the network's; by default images in [0, 1] to [-1, 1].
        sample_shape: shape of one sample in the network's space; read from a diffusers network's config when not given.
        guidance_scale: s of classifier-free guidance in sampling (Ho and Salimans 2022, arXiv 2207.12598, eq. 6 with
            s = 1 + w); 1 is the condition alone, at half the cost.
        null_condition: the empty condition, by keyword and for one sample, such as
            `{class_labels: 10}`; needed for guidance.

    Raises:
        ValueError: the sample shape is neither given nor in the network's config, or does not fit its patches, or there
            is guidance without a null condition, or the scale is negative.
    """

    pipeline_class: str | None = None  #: of diffusers, where the network is a pipeline's; it says how LoRA is stored
    origin: Any = None  #: the pipeline that it was read from, see `denoisers.origin`

    def __init__(
        self,
        network: nn.Module,
        noise_schedule: NoiseSchedule,
        codec: Codec | None = None,
        sample_shape: tuple[int, ...] | None = None,
        guidance_scale: float = 1.0,
        null_condition: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        for part in network.modules():  # each block of a DiT would drop labels by itself, when and where it likes
            if type(part).__name__ == "LabelEmbedding":
                part.dropout_prob = 0.0  # type: ignore[assignment]
        self._call = call_of(network)
        self.noise_schedule = noise_schedule
        self.codec: Codec = codec or Normalizer(mean=0.5, std=0.5, low=0.0, high=1.0)
        self.sample_shape = tuple(sample_shape or shape_from_config(network))
        check_sides(network, self.sample_shape)
        self.guidance_scale = guidance_scale
        self.null_condition = {name: torch.as_tensor(row) for name, row in (null_condition or {}).items()}
        self.check_guidance()
        self._check_null()

    def _check_null(self) -> None:
        count, null = classes_of(self.network), self.null_condition.get("class_labels")
        if count is not None and null is not None and not 0 <= int(null) < count:
            raise ValueError(
                f"null_condition has the label {int(null)}, but {type(self.network).__name__} knows {count} labels: "
                f"expected one in 0 .. {count - 1}; give the one that stood for none in its training, or leave it out."
            )

    def check_guidance(self) -> None:
        """Raise ValueError where the guidance scale is out of range, or there is nothing to guide away from."""
        if not 0 <= self.guidance_scale < math.inf:
            limit = "finite" if self.guidance_scale == math.inf else "at least 0"
            raise ValueError(f"guidance_scale must be {limit}, got {self.guidance_scale}.")
        if self.guidance_scale != 1 and not self.null_condition and not self.has_prompts:
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}, but the model says nothing of an empty condition: give "
                "`null_condition`, such as {class_labels: 10}, or leave guidance_scale at 1."
            )

    @property
    def guidance_settings(self) -> tuple[Any, ...]:
        """What samples depend on besides network, schedule, codec and condition."""
        return (self.guidance_scale,)

    @property
    def has_prompts(self) -> bool:
        """Whether it takes prompts, by text encoders of its own; see `PretrainedDenoiser`."""
        return False

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the condition of `prompts`, one row each, each encoded once and on its own.

        Raises:
            TypeError: the model takes no prompts.
        """
        if "class_labels" in names_of(self.network).needed:
            raise TypeError(
                f"this {type(self.network).__name__} takes no prompts but class_labels: expected labels; set the data "
                "module's `conditions` to Labels, or choose a text-to-image model."
            )
        raise TypeError(
            f"{type(self).__name__} takes no prompts: expected a text-to-image pipeline with its text encoders, as "
            "PretrainedDenoiser reads it."
        )

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one sample in the data's units, without batch."""
        return self.codec.data_shape(self.sample_shape)

    def null(self, rows: int, device: torch.device) -> dict[str, Tensor]:
        """Return the empty condition for `rows` samples."""
        return {name: row.to(device).expand(rows, *row.shape) for name, row in self.null_condition.items()}

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the network's raw output for `noisy` `(B, *shape)` at `timesteps` `(B,)` or `(B, L)`."""
        return self.call(self.network, noisy, timesteps, condition)

    def call(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the output of `network`, a module of the same kind as ours: its EMA, or a frozen copy.

        It is called in the precision of its weights; what is returned has that of `noisy`.

        Raises:
            TypeError: it returns no tensor of floats, and nothing with one.
            ValueError: what it returns has another shape than `noisy`, to which it would be broadcast, or an entry of
                the condition has not one row per sample.
        """
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), noisy.dtype)
        given = self.noise_schedule.network_input(noisy, timesteps).to(dtype)
        time = self.noise_schedule.network_time(timesteps)
        result = self._call(network, given, time, **arguments(condition, len(noisy), dtype))
        # under autocast the network may answer in half precision
        return checked_output(network, result, noisy).to(noisy.dtype)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, condition: Condition | None = None, network: nn.Module | None = None
    ) -> Prediction:
        """Return output, noise and clean sample for `noisy`, by our own network or by `network`, without guidance."""
        output = self.call(self.network if network is None else network, noisy, timesteps, condition)
        return self.interpret(output, noisy, timesteps)

    def outputs(
        self, noisy: Tensor, timesteps: Tensor, condition: Condition | None = None, network: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the raw output, and the one with guidance, null + s (condition - null), from one call of 2 B rows."""
        network = self.network if network is None else network
        if self.guidance_scale == 1 or condition is None:
            output = self.call(network, noisy, timesteps, condition)
            return output, output
        both = join([self.null(len(noisy), noisy.device), condition])
        null, output = self.call(network, torch.cat([noisy] * 2), torch.cat([timesteps] * 2), both).chunk(2)
        return output, null + self.guidance_scale * (output - null)

    def predictor(self, condition: Condition | None = None, network: nn.Module | None = None) -> Predict:
        """Return `(noisy, timesteps) -> Prediction`, with guidance and the condition of its B rows bound."""

        def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
            return self.interpret(self.outputs(noisy, timesteps, condition, network)[1], noisy, timesteps)

        return predict

    def interpret(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Prediction:
        """Read a raw output as a noise and a clean sample."""
        schedule = self.noise_schedule
        clean = self.codec.clamp(schedule.to_clean(output, noisy, timesteps))
        return Prediction(output, schedule.to_noise(output, noisy, timesteps), clean)

    def check_data(self, shape: tuple[int, ...], condition: Condition | None = None) -> None:
        """Raise ValueError or TypeError if data of `shape` (without batch), or `condition`, do not fit the network.

        It is tried on two rows of zeros; random numbers and the network's mode stay as they were.

        Args:
            shape: of one sample of data.
            condition: of two samples, from the data module.
        """
        if tuple(shape) != self.data_shape:
            raise ValueError(
                f"the denoiser expects samples of shape {self.data_shape} (channels, height, width), but the data "
                f"has {tuple(shape)}; resize the data, or choose a model that was trained on data of that shape."
            )
        self.check_condition(condition)
        weight = next((p for p in self.network.parameters() if p.is_floating_point()), torch.empty(0))
        noisy = torch.zeros(2, *self.sample_shape, device=weight.device, dtype=weight.dtype)
        time = self.noise_schedule.network_time(torch.zeros(2, dtype=torch.long, device=weight.device))
        told = arguments(condition, 2, weight.dtype) if condition else {}
        with undisturbed(self.network, weight.device):
            try:
                result = self._call(self.network, noisy, time, **_on(told, weight.device))
            except Exception:  # it may want a time per token, or of a batch: the first call tells
                return
        checked_output(self.network, result, noisy)

    def check_labels(self, labels: Tensor | None) -> None:
        """Raise ValueError where a class label `(B,)` that is asked for is unknown, or stands for none."""
        count, null = classes_of(self.network), self.null_condition.get("class_labels")
        if labels is None or count is None or labels.is_floating_point():
            return
        known = [label for label in range(count) if null is None or label != int(null)]
        for label in labels.tolist():
            if label not in known:
                none = f" ({int(null)} stands for none)" if null is not None else ""
                raise ValueError(
                    f"the label {label} is asked for, but {type(self.network).__name__} draws the labels {known[0]} to "
                    f"{known[-1]}{none}: expected some of them; mend the data module's `conditions`."
                )

    def check_condition(self, condition: Condition | None) -> None:
        """Raise ValueError where `condition` lacks what the network or guidance needs, or has what it does not know."""
        names = names_of(self.network)
        needed, known = names
        given = {name.partition(".")[0] for name in condition or {}}
        name = type(self.network).__name__
        if missing := sorted(needed - given):
            raise ValueError(
                f"{name} needs {', '.join(missing)}, which nobody gives: expected a data module whose batches and "
                f"seeds have it as their condition; set its `conditions` {names.hint}."
            )
        if known is not None and (unknown := sorted(given - {*known})):
            raise ValueError(
                f"the data module gives the condition {', '.join(unknown)}, which {name} does not take: expected "
                f"{'some of ' * bool(known)}{', '.join(known) or 'none'}; leave it out, or choose a conditional model."
            )
        null = set(self.null(1, torch.device("cpu"))) if self.guidance_scale != 1 and condition else set()
        if null and (differ := sorted(null ^ set(condition or {}))):
            raise ValueError(
                f"guidance leads from the null condition to the condition, but only one of them has "
                f"{', '.join(differ)}: expected the same names; mend `null_condition`, or set guidance_scale to 1."
            )


def checked_output(network: nn.Module, result: Any, noisy: Tensor) -> Tensor:
    """Return the tensor in what `network` returned for `noisy` `(B, *shape)`; raises as `Denoiser.call`."""
    name, output = type(network).__name__, result
    if isinstance(result, tuple) and result:
        output = getattr(result, "sample", result[0])
    elif isinstance(result, dict):
        output = result.get("sample")
    elif not isinstance(result, Tensor):
        output = getattr(result, "sample", None)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        got = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else f"a {type(result).__name__}"
        raise TypeError(
            f"{name} must return a tensor of floats, or an object with one as .sample, but returned {got}; wrap it in "
            "a module whose forward returns that tensor."
        )
    if output.ndim == noisy.ndim and output.shape[1] == 2 * noisy.shape[1] and learns_variance(network):
        output = output[:, : noisy.shape[1]]
    if output.shape != noisy.shape:
        raise ValueError(
            f"{name} must return the shape of its input, {tuple(noisy.shape)}, but returned {tuple(output.shape)}; "
            "check its number of output channels and its padding."
        )
    return output


def learns_variance(network: nn.Module) -> bool:
    """Return whether the second half of the network's channels is a variance, which samplers here have no use for."""
    config: Any = getattr(network, "config", None) or {}
    channels = config.get("in_channels"), config.get("out_channels")
    return None not in channels and channels[1] == 2 * channels[0]


def _on(given: Any, device: torch.device) -> Any:
    if isinstance(given, dict):
        return {name: _on(value, device) for name, value in given.items()}
    return given.to(device)
