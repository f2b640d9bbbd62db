"""FLOPs and saved memory of one optimisation step at Stable Diffusion 1.5's size, counted on the meta device.

    python benchmarks/dno_flops.py [--steps 50]

A forward pass is the sampler with guidance and one decoding. With frozen weights and a checkpoint per denoiser call, a
step is a forward pass, a second one, and the gradient of the input.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from constrained_diffusion.denoisers.adapter import Prediction
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.noise_optimization.mapping import NoiseToSample
from constrained_diffusion.noise_optimization.memory import saved_bytes
from constrained_diffusion.sampling import Sampler

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class MetaSchedule(DiffusersSchedule):
    """A schedule on the meta device that still knows its numbers."""

    def __init__(self) -> None:
        super().__init__({**BETAS, "prediction_type": "epsilon"})
        self.known = self.alphas_cumprod.tolist()
        self.to("meta")

    def levels(self) -> list[float]:
        return self.known


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

    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storages[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            kept.append(tensor.untyped_storage())
        return tensor

    kept: list[object] = []  # alive, so that no identity is used twice
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        image = mapping(z)
    one_call = saved_bytes(predict, noise[:, 0].detach(), torch.zeros(1, dtype=torch.long, device="meta"))
    latents = given.steps * 4 * 64 * 64 * 4 + noise.numel() * 4
    peak, limit = sum(storages.values()) + one_call, one_call + latents
    print(
        f"saved for the step {sum(storages.values()) / 2**20:.1f} MiB, of one denoiser call {one_call / 2**20:.0f} MiB"
    )
    print(f"step's peak {peak / 2**20:.0f} MiB: {peak / limit:.3f} x (one call + latents) (aim <= 1.05)")
    del image


if __name__ == "__main__":
    main()
