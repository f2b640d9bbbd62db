"""What a constraint on decoded pixels adds to a LoRA step at Stable Diffusion 1.5's size.

    python benchmarks/lora_cost.py [--batch 4] [--json lora_cost.json] [--cuda]

FLOPs, calls and the most bytes of activations are counted on the meta device, in single precision and with attention
as plain products; `--cuda` measures seconds and peak memory in bf16 with random weights, on which neither depends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from dno_flops import BETAS, LiveBytes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from constrained_diffusion.batch import NoisyBatch
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.autoencoder import Autoencoder
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.fine_tuning.loss import PenaltyLoss
from constrained_diffusion.fine_tuning.networks import Networks
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.objectives import Constraint

LORA = {"r": 8, "lora_alpha": 8, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
DECODER = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}

#: name, and what it changes; the first is the step that the others are compared with
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA alone": {"constrained": False},
    "pixels of one row": {"decode_rows": 1},
    "pixels of all rows": {},
    "pixels of all rows, anchored": {"formulation": "anchored_algorithm1"},
    "one row, guided": {"decode_rows": 1, "guided": True},
    "one row, guided, network checkpointed": {"decode_rows": 1, "guided": True, "checkpointed": True},
    "all rows, network checkpointed": {"checkpointed": True},
}


class MeanPixel(Constraint):
    """g = mean pixel - 0.4: next to nothing beside the decoder."""

    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1) - 0.4


def make(
    device: str,
    batch: int,
    dtype: torch.dtype = torch.float32,
    constrained: bool = True,
    formulation: str = "algorithm1",
    decode_rows: int | None = None,
    guided: bool = False,
    checkpointed: bool = False,
) -> tuple[Networks, Callable[[], None], Counter[str]]:
    """Return the networks of a fit, a function that makes a step's gradient, and what it counts.

    Counted are the rows that UNet and decoder were called with: "trained", "frozen", "decoded" and "decoded again".
    """
    torch.manual_seed(0)
    schedule = DiffusersSchedule({**BETAS, "prediction_type": "epsilon"}).to(device)
    steering = Steering([MeanPixel()] if constrained else []).to(device)
    with torch.device(device):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        vae = AutoencoderKL(**DECODER, **BLOCKS)
        if dtype != torch.float32:
            unet, vae = unet.to(dtype), vae.to(dtype)
        codec, null = Autoencoder(network=vae), {"encoder_hidden_states": torch.zeros(77, 768)}
        scale = 7.5 if guided else 1.0
        denoiser = Denoiser(unet, schedule, codec, (4, 64, 64), guidance_scale=scale, null_condition=null)
        networks = Networks(denoiser, 0.98, LORA, constrained, checkpointed)
        loss = PenaltyLoss(steering, denoiser, formulation, decode_rows=decode_rows)
        clean, noise = torch.randn(2, batch, 4, 64, 64).unbind()
        timesteps = torch.full((batch,), 500)
        condition = {"encoder_hidden_states": torch.randn(batch, 77, 768)}
        noisy, data = schedule.add_noise(clean, noise, timesteps), torch.zeros(batch, 3, 512, 512)
    # The highest timestep of each row is on the host, where rows are chosen.
    step = NoisyBatch(clean, data, noise, noisy, timesteps, torch.full((batch,), 500), condition)
    networks.trained.train()
    counts: Counter[str] = Counter()
    _count(networks, counts)

    def run() -> None:
        counts.clear()
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            frozen = networks.predict_frozen(step) if loss.needs_frozen else None
            prediction, judged = networks.predict_judged(step, guided)
            cost = loss(step, prediction, frozen, judged).loss
        counts["backward"] = 1
        cost.backward()
        del counts["backward"]
        for parameter in networks.trained.parameters():
            parameter.grad = None

    return networks, run, counts


def _count(networks: Networks, counts: Counter[str]) -> None:
    codec: Any = networks.denoiser.codec

    def of_network(module: Any, inputs: Any) -> None:
        counts["trained" if torch.is_grad_enabled() else "frozen"] += len(inputs[0])

    def of_decoder(module: Any, inputs: Any) -> None:
        counts["decoded again" if counts["backward"] else "decoded"] += len(inputs[0])

    networks.trained.register_forward_pre_hook(of_network)
    codec.network.decoder.register_forward_pre_hook(of_decoder)


@contextmanager
def meta_autocast() -> Iterator[None]:
    """Let torch's autocast, which is off, be asked of the meta device, which it does not know."""

    def asked_of_cpu(function: Any) -> Any:
        return lambda device, *args, **kwargs: function("cpu" if device == "meta" else device, *args, **kwargs)

    names = ("autocast", "get_autocast_dtype", "is_autocast_enabled")
    with ExitStack() as patches:
        for name in names:
            patches.enter_context(patch.object(torch, name, asked_of_cpu(getattr(torch, name))))
        yield


def count(batch: int, **settings: Any) -> dict[str, Any]:
    """Return FLOPs, peak bytes and calls of one step, counted on the meta device."""
    _, run, counts = make("meta", batch, **settings)
    with meta_autocast():
        with FlopCounterMode(display=False) as counter:
            run()
        with LiveBytes() as live:
            run()
    return {"flops": counter.get_total_flops(), "bytes": live.peak, **counts}


def measure(batch: int, repeat: int = 5, **settings: Any) -> dict[str, Any]:
    """Return the median seconds of a step and the peak bytes, all networks included, in bf16 on a GPU."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _, run, counts = make("cuda", batch, torch.bfloat16, **settings)
    seconds = []
    for _ in range(repeat + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:]), "bytes": torch.cuda.max_memory_allocated(), **counts}


def main() -> None:
    """Count or measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cuda", action="store_true")
    given = parser.parse_args()
    if given.cuda and not torch.cuda.is_available():
        raise SystemExit("error: --cuda needs a CUDA device, and torch sees none.")
    rows: list[dict[str, Any]] = []
    what, unit, scale = ("seconds", "s", 1.0) if given.cuda else ("flops", "TFLOP", 1e12)
    print(f"| step, batch {given.batch} | {unit} | x | peak GiB | more | rows: trained, frozen, decoded, again |")
    print("|---|---|---|---|---|---|")
    for name, settings in VARIANTS.items():
        row = {"step": name, **(measure if given.cuda else count)(given.batch, **settings)}
        rows.append(row)
        ratio, more = row[what] / rows[0][what], (row["bytes"] - rows[0]["bytes"]) / 2**30
        calls = ", ".join(str(row.get(key, 0)) for key in ("trained", "frozen", "decoded", "decoded again"))
        peak = row["bytes"] / 2**30
        print(f"| {name} | {row[what] / scale:.2f} | {ratio:.3f} | {peak:.1f} | {more:+.1f} | {calls} |", flush=True)
    if given.json:
        machine = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if given.cuda else "meta"}
        facts = {"machine": machine, "settings": {"batch": given.batch, "lora": LORA}, "rows": rows}
        given.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
