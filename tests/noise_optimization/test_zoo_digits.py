"""The zoo's digits, as `dno_mnist.yaml` optimises them: a sample comes out alike whatever else is in its batch."""

from __future__ import annotations

import torch

from constrained_diffusion import NoiseOptimizer, NoiseToSample, PretrainedDenoiser, Sampler
from constrained_diffusion.diffusion.sampler import seeded_noise
from constrained_diffusion.domains.images.pixels import Brightness


def test_a_row_is_alike_alone_and_in_a_batch() -> None:
    denoiser = PretrainedDenoiser("mnist_denoiser").requires_grad_(False).eval()
    sampler, schedule = Sampler(steps=10, eta=1.0), denoiser.noise_schedule
    sample = NoiseToSample(lambda _: denoiser.predict, schedule, sampler, memory_budget="unlimited")
    optimizer = NoiseOptimizer(sample, Brightness(), steps=10)

    def run(seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        noise = seeded_noise(seeds, denoiser.sample_shape, sampler, schedule)
        return noise, torch.tensor([record.rewards for record in optimizer.run(noise, keys=seeds)])

    noise, rewards = run([0, 3, 7])
    for place, seed in ((0, 0), (2, 7)):
        own_noise, own_rewards = run([seed])
        assert torch.equal(noise[place], own_noise[0])
        assert (rewards[place] - own_rewards[0]).abs().max() < 1e-3
    assert (rewards[:, -1] > rewards[:, 0] + 0.01).all()
