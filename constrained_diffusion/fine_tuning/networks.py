"""The networks of a fit: trained, averaged and frozen; how the average moves, and how ranks share all three out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim.swa_utils import get_ema_multi_avg_fn

from constrained_diffusion.batch import NoisyBatch
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.config import denoiser_config
from constrained_diffusion.denoisers.export import export, export_lora, weights_sha256
from constrained_diffusion.denoisers.lora_files import takes_lora
from constrained_diffusion.denoisers.merging import absorb_adapters, merge_adapters
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.fine_tuning.lora import (
    adapter_names,
    adapters_off,
    add_adapters,
    fingerprint,
    shared_copy,
)
from constrained_diffusion.runtime.precision import keep_float32, to_float32
from constrained_diffusion.runtime.sharding import gather_full, local, meta_copy, shard

Weights = Literal["ema", "raw", "pretrained"]


class Networks(nn.Module):
    """The trained network, its EMA and the frozen copy of what it was when it came.

    Every call of a network that is shared out over ranks is one of all ranks together. In validation ranks draw
    different numbers of samples, so each puts a whole EMA together (`gather`); so does `export`.

    Args:
        denoiser: the network with its schedule and units; what it holds now is "the pretrained model", adapters that
            it came with included, which are merged into its weights.
        ema_decay: decay of the moving average of the weights.
        lora: keyword arguments of `peft.LoraConfig`: train low-rank adapters, the frozen model being the same network
            with these off; None trains all weights.
        keep_frozen: whether anything compares with the frozen model.
        gradient_checkpointing: let the trained network run again on the way back rather than keep its activations: a
            third more time for much less memory.

    Raises:
        ValueError: a decay outside [0, 1), or a network that cannot checkpoint.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        ema_decay: float = 0.98,
        lora: dict[str, Any] | None = None,
        keep_frozen: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}.")
        self.denoiser, self.ema_decay, self.lora = denoiser, ema_decay, lora
        absorb_adapters(denoiser.network)
        #: of the weights that adapters are trained beside, which checkpoints leave out; None without adapters
        self.fingerprint = fingerprint(denoiser.network) if lora else None
        # In tuples, so that they are in no optimiser, no DDP wrapper and no checkpoint: the frozen network, and the EMA
        # of sharded networks, without its weights and with them.
        copied = keep_frozen and not lora
        self._frozen = (copy.deepcopy(denoiser.network).requires_grad_(False).eval(),) if copied else ()
        self._meta_copy: tuple[nn.Module, ...] = ()
        self._full_copy: tuple[nn.Module, ...] = ()
        if lora:
            add_adapters(denoiser.network, lora)
        copied_ema = shared_copy(denoiser.network) if lora else copy.deepcopy(denoiser.network)
        self.ema = copied_ema.requires_grad_(False).eval()
        if gradient_checkpointing:
            enable_checkpointing(denoiser.network)
        self.config: dict[str, Any] | None = None  #: of the denoiser, while sharding has changed its classes
        self.register_buffer("_like", torch.zeros(()), persistent=False)  # follows to every device and dtype

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self._like.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """What the networks were moved to."""
        return self._like.dtype  # type: ignore[return-value]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        for network in self._frozen:  # hidden from `modules()`, it must follow to a device or dtype all the same
            network._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # In half precision an average would not move. With LoRA it is the adapters; the rest is the trained network's.
        if not self.lora:
            self.ema._apply(keep_float32(lambda values: values))
        for average, _ in self._averages():
            average.data = to_float32(average.data)
        return self

    def _averages(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Each average with the trained parameter that it follows."""
        pairs = zip(self.ema.parameters(), self.trained.parameters(), strict=True)
        return [(old, new) for old, new in pairs if old is not new]

    # ---------------------------------------------------------------- predictions

    @property
    def trained(self) -> nn.Module:
        """The network whose weights an optimiser moves."""
        return self.denoiser.network

    @property
    def pretrained(self) -> nn.Module:
        """The network with its pretrained weights; with LoRA, the trained one, to be run with its adapters off."""
        return self._frozen[0] if self._frozen else self.denoiser.network

    @property
    def averaged(self) -> nn.Module:
        """The network with the EMA weights, whole on each rank."""
        if not self.sharded:
            return self.ema
        if not self._full_copy:
            raise RuntimeError(
                "the EMA weights are shared out over ranks (strategy fully_sharded), which put them together for "
                "validation and at the end of training alone; draw samples there, or fit with strategy ddp."
            )
        return self._full_copy[0]

    def predict(self, step: NoisyBatch) -> Prediction:
        """Return the trained network's prediction for the rows of `step`, with gradient."""
        return self.denoiser.predict(step.noisy, step.timesteps, step.condition)

    def predict_judged(self, step: NoisyBatch, guided: bool) -> tuple[Prediction, Prediction]:
        """Return the trained network's prediction, and what constraints see of it, both with gradient.

        That is the same or, where `guided`, the prediction with guidance, both from one call of 2 B rows.
        """
        if not guided:
            prediction = self.predict(step)
            return prediction, prediction
        plain, steered = self.denoiser.outputs(step.noisy, step.timesteps, step.condition)
        prediction = self.denoiser.interpret(plain, step.noisy, step.timesteps)
        if steered is plain:
            return prediction, prediction
        return prediction, self.denoiser.interpret(steered, step.noisy, step.timesteps)

    @torch.no_grad()
    def predict_frozen(self, step: NoisyBatch) -> Prediction:
        """Return the pretrained network's prediction for the same rows."""
        network, training = self.pretrained, self.pretrained.training
        # Shards that were put together in inference mode are not fit for autograd.
        mode = nullcontext() if self.sharded else torch.inference_mode()
        with self._without_adapters(), mode:
            told = step.condition if step.teacher is None else step.teacher
            output = self.denoiser.call(network.eval(), step.noisy, step.timesteps, told)
        network.train(training)  # with LoRA it is the trained network
        # A clone may take part in autograd.
        return self.denoiser.interpret(output.clone(), step.noisy, step.timesteps)

    def average_output(self, step: NoisyBatch) -> Tensor:
        """Return the EMA network's raw output for the rows of `step`."""
        return self.denoiser.call(self.averaged, step.noisy, step.timesteps, step.condition)

    @contextmanager
    def evaluating(self, weights: Weights) -> Iterator[nn.Module]:
        """Give the network with EMA, raw or pretrained weights in eval mode, and put its mode back."""
        network = {"ema": lambda: self.averaged, "raw": lambda: self.trained, "pretrained": lambda: self.pretrained}
        chosen = network[weights]()
        training = chosen.training
        try:
            with self._without_adapters() if weights == "pretrained" else nullcontext():
                yield chosen.eval()
        finally:
            chosen.train(training)

    def _without_adapters(self) -> Any:
        return adapters_off(self.trained) if self.lora else nullcontext()

    def update_ema(self) -> None:
        """Move the EMA weights one step towards the trained ones; called after every optimiser step."""
        update = get_ema_multi_avg_fn(self.ema_decay)
        averages, trained = (local(part) for part in zip(*self._averages(), strict=True))
        update(averages, [new.to(old.dtype) for old, new in zip(averages, trained, strict=True)], 0)

    # ---------------------------------------------------------------- shared out over ranks

    @property
    def sharded(self) -> bool:
        """Whether each rank holds its share of the weights alone."""
        return bool(self._meta_copy)

    def share_out(self, mesh: DeviceMesh, block: int) -> None:
        """Share all three networks out over the ranks of `mesh`, in place; `block` as in `FullySharded`."""
        self.config = denoiser_config(self.denoiser)  # sharding puts other classes in place of the network's
        self.ema = copy.deepcopy(self.ema)  # with LoRA it has the trained network's weights, to be shared out once
        self._meta_copy = (meta_copy(self.ema),)
        for network in (self.trained, self.ema, *self._frozen):
            shard(network, mesh, block)

    def gather(self) -> None:
        """Put the EMA together, if it is shared out; all ranks must call it before one of them uses `averaged`."""
        self._full_copy = tuple(gather_full(like, self.ema) for like in self._meta_copy)

    def release(self) -> None:
        """Let go of what `gather` put together."""
        self._full_copy = ()

    # ---------------------------------------------------------------- on disk

    def denoiser_config(self) -> dict[str, Any]:
        """Return what makes the denoiser again, but for its weights."""
        return self.config or denoiser_config(self.denoiser)

    @property
    def given(self) -> set[str]:
        """Names, in the network's state, of the weights beside its adapters, which its source has; else none."""
        return set(self.trained.state_dict()) - adapter_names(self.trained) if self.lora else set()

    def export(self, folder: str | Path, ema: Mapping[str, Tensor] | None = None, merge_lora: bool = False) -> None:
        """Write the EMA weights to `folder`: a diffusers pipeline where the network is one, else safetensors.

        Of adapters of a pipeline's network, diffusers' own file of them alone.

        Args:
            folder: a new or an empty one.
            ema: the state of `ema`, from a checkpoint of this model, to write in place of the present one.
            merge_lora: write the whole network in any case, with its adapters merged.
        """
        if self.lora and not merge_lora and takes_lora(self.denoiser.pipeline_class):
            earlier = getattr(self.denoiser, "adapters", [])
            export_lora(self.averaged, folder, str(self.denoiser.pipeline_class), ema, earlier)
            return
        network = copy.deepcopy(self.averaged)
        if ema is not None:
            network.load_state_dict(ema, strict=not self.lora)
        if self.lora:  # in half precision the weights would round their adapters away
            network = merge_adapters(network._apply(keep_float32(lambda values: values)))
        export(self.denoiser, folder, network)

    def weights_sha256(self) -> dict[str, str]:
        """Return the hashes of the pretrained weights (where a copy is kept) and of the EMA weights."""
        before = {"before": weights_sha256(self._frozen[0])} if self._frozen else {}
        return {**before, "after": weights_sha256(self.averaged)}


def enable_checkpointing(network: nn.Module) -> None:
    """Let `network`, one of diffusers', run its blocks again on the way back rather than keep their activations.

    Raises:
        ValueError: it cannot.
    """
    if not getattr(network, "_supports_gradient_checkpointing", False):
        raise ValueError(
            f"gradient_checkpointing expects a network of diffusers that supports it, which {type(network).__name__} "
            "does not; leave it out, or take smaller batches."
        )
    network.enable_gradient_checkpointing()  # type: ignore[operator]
