"""What a fit's checkpoint holds of a model, and whether one is of this model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from constrained_diffusion.denoisers.sources import EMA, TRAINED, check_layout
from constrained_diffusion.runtime import untrusted

#: State that checkpoints leave out: judges and classifiers are named in the config and come from their own files.
ELSEWHERE = ("evaluation.", "loss.steering.constraints.", "guide.", "networks.denoiser.codec.network.")


def own_state(state: Mapping[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
    """Return the part of a module's state that its checkpoints hold: all but the weights `given` beside adapters."""
    left_out = {prefix + name for prefix in (TRAINED, EMA) for name in given}
    return {name: value for name, value in state.items() if not name.startswith(ELSEWHERE) and name not in left_out}


def check_state(
    checkpoint: Mapping[str, Any], own: Mapping[str, Any], given: Collection[str] = (), fingerprint: str | None = None
) -> None:
    """Raise ValueError where `checkpoint` is not of a model whose state is `own`, or of an earlier layout.

    Args:
        checkpoint: of a fit.
        own: the state of the module that is to take it.
        given: names of the weights that its network has from elsewhere, beside its adapters.
        fingerprint: of those weights; None without adapters.
    """
    state = checkpoint["state_dict"]
    check_layout(state)
    kept = own_state(own, given)
    wrong = [k for k, v in kept.items() if k not in state or state[k].shape != v.shape]
    wrong += [k for k in state if k not in kept]
    if wrong or "batches_seen" not in checkpoint:
        raise ValueError(
            f"the checkpoint is of another model: of the {len(kept)} tensors of this denoiser and its constraints, "
            f"{len(wrong)} are missing, left over or of another shape (the first: {(wrong or ['batches_seen'])[0]}); "
            "give the config that the checkpoint was made with."
        )
    if checkpoint.get("adapted") != fingerprint:
        raise ValueError(
            "the checkpoint holds LoRA adapters alone, and they were trained beside other weights than those of this "
            "denoiser: give the source that the fit was given."
        )


def read_ema(path: str | Path) -> dict[str, Tensor]:
    """Return the EMA weights of a checkpoint file, under the network's own names."""
    state = untrusted.read_checkpoint(path, "state_dict")["state_dict"]
    return {name.removeprefix(EMA): value for name, value in state.items() if name.startswith(EMA)}
