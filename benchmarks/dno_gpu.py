"""One optimisation step of a random-weight model of Stable Diffusion 1.5's size on a GPU: seconds and peak memory.

    python benchmarks/dno_gpu.py [--batch 1 4] [--compile] [--budget minimal|unlimited|BYTES] [--steps 50]

Prints, per batch size, the median seconds of a step and the peak bytes: ours in bf16, and beside it what plain code
does, float16 autocast over float32 weights with every denoiser call checkpointed. The weights are random, on which
neither depends.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.noise_optimization.mapping import NoiseToSample
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer, Run

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DECODER = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512}


def networks(dtype: torch.dtype) -> tuple[Any, Any]:
    """Return UNet and autoencoder with random weights on the GPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(**DECODER, **blocks)
    return tuple(
        net.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False).eval() for net in (unet, vae)
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--budget", default="minimal")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: dno_gpu.py needs a CUDA device, and torch sees none.")
    budget = int(given.budget) if given.budget.isdigit() else given.budget
    print(torch.cuda.get_device_name(), f"torch {torch.__version__}, compile {given.compile}")
    for name, dtype, memory in (("bf16", torch.bfloat16, budget), ("plain float16", torch.float32, "minimal")):
        unet, vae = networks(dtype)
        if given.compile and dtype == torch.bfloat16:
            unet = torch.compile(unet)
        for batch in given.batch:
            seconds, peak = measure(unet, vae, dtype, batch, given, memory)
            each = seconds / batch
            print(f"{name:14s} batch {batch}: {seconds:.2f} s a step, {each:.2f} s a sample, {peak / 1e9:.1f} GB")


def measure(unet: Any, vae: Any, dtype: torch.dtype, batch: int, given: Any, memory: Any) -> tuple[float, int]:
    """Return the median seconds of an optimisation step and the peak bytes."""
    schedule = DiffusersSchedule({**BETAS, "prediction_type": "epsilon"}).cuda()
    text = torch.randn(2 * batch, 77, 768, device="cuda", dtype=dtype)

    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        with torch.autocast("cuda", torch.float16, enabled=dtype == torch.float32):
            double = noisy.to(dtype).repeat(2, 1, 1, 1)
            output = unet(double, timesteps.repeat(2), encoder_hidden_states=text).sample
        negative, positive = output.float().chunk(2)
        output = negative + 5.0 * (positive - negative)
        return Prediction(
            output, schedule.to_noise(output, noisy, timesteps), schedule.to_clean(output, noisy, timesteps)
        )

    def decode(latents: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.float16, enabled=dtype == torch.float32):
            return vae.decode(latents.to(dtype) / 0.18215).sample.float()

    sampler = Sampler(given.steps, 1.0, "leading", 1, set_alpha_to_one=False, clip_sample=False)
    finish = lambda x: checkpoint(decode, x, use_reentrant=False)  # noqa: E731
    mapping = NoiseToSample(lambda _: predict, schedule, sampler, finish, memory)
    optimizer = NoiseOptimizer(mapping, lambda x: x.flatten(1).mean(1), steps=given.repeat + 1)
    run = Run(optimizer, torch.randn(batch, mapping.slices, 4, 64, 64, device="cuda"), None, None)
    run.step()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(given.repeat):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times), torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
