"""FLOPs and memory of one optimisation step at Stable Diffusion 1.5's size, counted on the meta device.

    python benchmarks/dno_flops.py [--steps 50]

A forward pass is the sampler with guidance and one decoding. With frozen weights and a checkpoint per denoiser call, a
step is a forward pass, a second one, and the gradient of the input.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.noise_schedule import Level
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.noise_optimization.mapping import NoiseToSample

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class MetaSchedule(DiffusersSchedule):
    """A schedule on the meta device that still knows its numbers."""

    def __init__(self) -> None:
        super().__init__({**BETAS, "prediction_type": "epsilon"})
        self.known = (DiffusersSchedule({**BETAS, "prediction_type": "epsilon"}),)  # in a tuple, which does not move
        self.to("meta")

    def grid(self, sampler: Sampler) -> list[Level]:
        return self.known[0].grid(sampler)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, by their storages, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self.note(tensor.untyped_storage())
        return results

    def note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def peak_bytes(function: Callable[[], Any]) -> int:
    """Return the most bytes that `function` holds at a time, of what it makes."""
    with LiveBytes() as live:
        result = function()
    del result
    return live.peak


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        text = torch.empty(2, 77, 768)
    unet.requires_grad_(False).eval()
    vae.requires_grad_(False).eval()
    schedule = MetaSchedule()

    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        output = unet(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), encoder_hidden_states=text).sample
        negative, positive = output.chunk(2)
        output = negative + 5.0 * (positive - negative)
        noise, clean = schedule.to_noise(output, noisy, timesteps), schedule.to_clean(output, noisy, timesteps)
        return Prediction(output, noise, clean)

    def decode(latents: Tensor) -> Tensor:
        if not latents.requires_grad:
            return vae.decode(latents).sample
        return checkpoint(lambda x: vae.decode(x).sample, latents, use_reentrant=False, preserve_rng_state=False)

    sampler = Sampler(
        steps=given.steps, eta=1.0, spacing="leading", steps_offset=1, set_alpha_to_one=False, clip_sample=False
    )
    mapping = NoiseToSample(lambda _: predict, schedule, sampler, decode)
    noise = torch.empty(1, mapping.slices, 4, 64, 64, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mapping(noise)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        z = noise.requires_grad_(True)
        torch.autograd.grad(mapping(z).sum(), z)
    step = counter.get_total_flops()
    ratio = step / forward
    print(f"UNet {sum(p.numel() for p in unet.parameters()):,} parameters, z {noise.numel():,} numbers")
    print(f"forward {forward / 1e12:.1f} TFLOP, optimisation step {step / 1e12:.1f}: {ratio:.3f} x (aim <= 3.20)")

    del z
    noise = noise.detach().requires_grad_(True)
    latent = noise[:, 0].detach().requires_grad_(True)
    timesteps = torch.zeros(1, dtype=torch.long, device="meta")

    def differentiate(function: Callable[[Tensor], Tensor], given: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(function(given).sum(), given)

    call = peak_bytes(differentiate(lambda x: predict(x, timesteps).clean, latent))
    decoding = peak_bytes(differentiate(lambda x: vae.decode(x).sample, latent))
    whole = peak_bytes(differentiate(mapping, noise))
    # Kept from call to call: each step's noisy latents, and the gradient that is being gathered for z.
    latents = given.steps * latent.nbytes + noise.nbytes
    mib, limit = 2**20, call + latents
    print(f"peak of a denoiser call and its gradient {call / mib:,.0f} MiB, of a decoding {decoding / mib:,.0f} MiB")
    print(f"peak of the step {whole / mib:,.0f} MiB: {whole / limit:.3f} x (one call + latents) (aim <= 1.05)")
    mapping.memory_budget = "unlimited"
    print(f"peak with all activations kept {peak_bytes(differentiate(mapping, noise)) / mib:,.0f} MiB")


if __name__ == "__main__":
    main()
