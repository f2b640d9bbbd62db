"""Noise optimisation on the paper's ring: Figures 2, 3, 4 and 13 and Theorem 1 of D, in minutes on two cores.

    python benchmarks/dno_ring.py [--samples 1000] [--json dno_ring.json]

Trains a toy denoiser (about half a minute), then prints one table per figure. What each must reach stands beside it.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.noise_optimization.mapping import NoiseToSample
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer, Run
from constrained_diffusion.noise_optimization.regularizers import PRNO, Regularizer, Unregularized
from constrained_diffusion.runtime.randomness import keyed_generator

STEPS = 50  # of DDIM


class PlaneDenoiser(nn.Module):
    """An MLP on points of the plane that knows the time by its Fourier features."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(8) * math.pi)
        layers: list[nn.Module] = [nn.Linear(2 + 16, width), nn.SiLU()]
        for _ in range(3):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        angles = timesteps[:, None].to(noisy.dtype) / 1000 * self.frequencies.to(noisy.dtype)
        return self.layers(torch.cat([noisy, angles.sin(), angles.cos()], 1))


def ring(count: int, generator: torch.Generator) -> Tensor:
    """Draw points uniform over the ring with radius 0.8 to 1.2, `(count, 2)`."""
    radius = torch.rand(count, generator=generator).mul(1.2**2 - 0.8**2).add(0.8**2).sqrt()
    angle = torch.rand(count, generator=generator) * 2 * math.pi
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def train(steps: int = 6000, batch: int = 1024, seed: int = 0) -> Denoiser:
    """Train the toy denoiser on fresh points; the weights are the moving average."""
    torch.manual_seed(seed)
    schedule = DiffusersSchedule({"num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "epsilon"})
    denoiser = Denoiser(PlaneDenoiser(), schedule, Normalizer(), sample_shape=(2,))
    generator = keyed_generator(seed)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        clean, noise = ring(batch, generator), torch.randn(batch, 2, generator=generator)
        timesteps = torch.randint(0, 1000, (batch,), generator=generator)
        noisy = schedule.add_noise(clean, noise, timesteps)
        loss = (denoiser(noisy, timesteps) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return denoiser.requires_grad_(False)


def waves(x: Tensor) -> Tensor:
    """Figure 2's reward: sin 4 pi x + sin 4 pi y - ((x - 1)^2 - y^2) / 5."""
    return (4 * math.pi * x).sin().sum(1) - ((x[:, 0] - 1).square() - x[:, 1].square()) / 5


def corner(x: Tensor) -> Tensor:
    """Figure 4's reward, largest outside the ring: -(x - 1.4)^2 - (y - 1.4)^2."""
    return -(x - 1.4).square().sum(1)


def off_ring(x: Tensor) -> Tensor:
    """Distance to the ring, `(B,)`."""
    radius = x.norm(dim=1)
    return (0.8 - radius).clamp(min=0) + (radius - 1.2).clamp(min=0)


def optimise(
    denoiser: Denoiser, reward: Any, samples: int, steps: int, eta: float, regularizer: Regularizer, **settings: Any
) -> dict[str, Tensor]:
    """Return rewards, log P(z) and samples at every evaluation, `(steps + 1, samples, ..)`."""
    sampler = Sampler(steps=STEPS, eta=eta)
    mapping = NoiseToSample(lambda _: denoiser.predict, denoiser.noise_schedule, sampler, memory_budget="unlimited")
    optimizer = NoiseOptimizer(mapping, reward, steps=steps, regularizer=regularizer, **settings)
    noise = seeded_noise(range(samples), (2,), sampler, denoiser.noise_schedule)
    run, points = Run(optimizer, noise, None, list(range(samples))), []
    while not run.finished:
        points.append(torch.stack(list(run.step().values())))
    return {
        "reward": torch.tensor([record.rewards for record in run.records]).T,
        "log_p": torch.tensor([record.log_probabilities for record in run.records]).T,
        "points": torch.stack(points),
    }


def main() -> None:
    """Train once, then print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--corner_samples", type=int, default=200)
    parser.add_argument("--corner_steps", type=int, default=1000)
    parser.add_argument("--gamma", type=float, default=30.0, help="weight of PRNO in Figures 4 and 13")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    denoiser, found = train(), {}
    adam = partial(torch.optim.Adam, lr=given.lr)

    common = {"optimizer": adam, "permutations": 0}
    sde = optimise(denoiser, waves, given.samples, 100, 1.0, Unregularized(), **common)["reward"].mean(1)
    ode = optimise(denoiser, waves, given.samples, 100, 0.0, Unregularized(), **common)["reward"].mean(1)
    print(f"Figures 2 and 3: mean reward, {given.samples} samples, Adam {given.lr}; SDE >= 1.4 by 30, >= 1.75 by 100")
    print("| step | SDE | ODE |\n|---|---|---|")
    for step in range(0, 101, 10):
        print(f"| {step} | {sde[step]:.3f} | {ode[step]:.3f} |")
    found["figures 2 and 3"] = {"sde": sde.tolist(), "ode": ode.tolist()}

    plain = partial(torch.optim.SGD, lr=1e-4)
    theorem = optimise(
        denoiser, waves, given.samples, 60, 1.0, Unregularized(), optimizer=plain, max_grad_norm=None, permutations=0
    )["reward"].mean(1)
    drop = float(theorem.diff().min())
    print(f"\nTheorem 1: gradient ascent, step 1e-4: {theorem[0]:.4f} -> {theorem[-1]:.4f}; smallest gain {drop:.2e}")
    found["theorem 1"] = theorem.tolist()

    print(f"\nFigures 4 and 13: {given.corner_samples} samples, {given.corner_steps} steps, n_z = {2 * STEPS}")
    print("| regulariser | reward | off the ring by > 0.1 | median P(z), last | median P(z), least | inside at -0.75 |")
    print("|---|---|---|---|---|---|")
    for name, regularizer in (("none", Unregularized()), (f"PRNO, gamma {given.gamma:g}", PRNO(given.gamma))):
        way = optimise(denoiser, corner, given.corner_samples, given.corner_steps, 1.0, regularizer, optimizer=adam)
        outside = (off_ring(way["points"][-1]) > 0.1).float().mean()
        medians = [math.exp(median(row)) for row in way["log_p"].tolist()]
        means = way["reward"].mean(1)
        reached = (means >= -0.75).nonzero().flatten().tolist()
        inside = float((off_ring(way["points"][reached[0]]) == 0).float().mean()) if reached else float("nan")
        print(
            f"| {name} | {means[-1]:.3f} | {outside:.1%} | {medians[-1]:.2g} | {min(medians):.2g} | "
            f"{inside:.1%} (step {reached[0] if reached else '-'}) |",
            flush=True,
        )
        found[name] = {"reward": means.tolist(), "median P": medians, "outside": float(outside), "inside": inside}
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
