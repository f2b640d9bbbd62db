"""Does PRNO keep a digit's class? Brightness, with and without it, at equal mean reward, by the independent judge.

    python benchmarks/dno_class.py [--gamma 0.1 1] [--n 128] [--steps 60] [--weights dno_class.pt]

Two models: the zoo's denoiser, which knows no classes, and the same one after some minutes of training on its own
samples with their classes as the condition, which stands for a prompt. PRNO keeps the noise typical, and typical noise
gives what the model draws under its condition; a model without any is free to draw another digit.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from diffusers import UNet2DModel
from dno_mnist import SAMPLER, Digits
from torch import Tensor
from tqdm.auto import trange

from constrained_diffusion import PretrainedDenoiser, zoo
from constrained_diffusion.constraints import PretrainedClassifier
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer, Run
from constrained_diffusion.noise_optimization.regularizers import PRNO, Regularizer, Unregularized
from constrained_diffusion.randomness import keyed_generator
from constrained_diffusion.rewards import Brightness
from constrained_diffusion.zoo import cards


def conditional(steps: int, batch: int = 64, lr: float = 5e-4) -> Denoiser:
    """Return the zoo's denoiser, trained on with the classes of its own samples (by the zoo's training classifier)."""
    source = PretrainedDenoiser("mnist_denoiser")
    torch.manual_seed(0)
    network = UNet2DModel.from_config(dict(source.network.config), num_class_embeds=10)
    network.load_state_dict(source.network.state_dict(), strict=False)
    denoiser = Denoiser(network, source.noise_schedule, source.normalizer)
    folder = zoo.path("mnist_denoiser")
    drawn = cards.read(folder)["samples"]
    clean = zoo.read_sheet(folder / "samples.png", drawn["count"], drawn["size"]).float()
    with torch.no_grad():
        classifier = PretrainedClassifier("mnist_classifier").eval()
        labels = torch.cat([classifier(part).argmax(1) for part in clean.split(500)])
    generator, schedule = keyed_generator(1), denoiser.noise_schedule
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in trange(steps, desc="with classes", leave=False):
        rows = torch.randint(len(clean), (batch,), generator=generator)
        x, noise = denoiser.normalizer.normalize(clean[rows]), torch.randn(batch, *clean.shape[1:], generator=generator)
        timesteps = torch.randint(schedule.num_timesteps, (batch,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            output = denoiser(schedule.add_noise(x, noise, timesteps), timesteps, labels[rows])
        loss = (output - schedule.target(x, noise, timesteps)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return denoiser


def optimise(
    digits: Digits, labels: list[int] | None, regularizer: Regularizer, given: argparse.Namespace
) -> tuple[Tensor, Tensor, Tensor]:
    """Return reward, whether the class is the first one, and log P(z): `(n, steps + 1)` each."""
    n, steps = given.n, given.steps
    rewards, kept, log_p = [], [], []
    for first in range(0, n, 32):
        places = range(first, min(first + 32, n))
        seeds = range(given.first_seed + first, given.first_seed + places.stop)
        context = [labels[i] for i in places] if labels else [None] * len(places)
        optimizer = NoiseOptimizer(
            digits.mapping, lambda clean, _: Brightness()(clean), steps=steps, regularizer=regularizer
        )
        run, classes = Run(optimizer, digits.noise(seeds), context, list(seeds)), []
        while not run.finished:
            classes.append(digits.classes(torch.stack(list(run.step().values())))[0])
        rewards.append(torch.tensor([record.rewards for record in run.records]))
        log_p.append(torch.tensor([record.log_probabilities for record in run.records]))
        kept.append(torch.stack([c == classes[0] for c in classes], 1).float())
    return torch.cat(rewards), torch.cat(kept), torch.cat(log_p)


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95 % interval (normal)."""
    mean, n = fmean(differences), len(differences)
    spread = 1.96 * math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return mean, mean - spread, mean + spread


def compare(title: str, digits: Digits, labels: list[int] | None, given: argparse.Namespace) -> dict[str, Any]:
    """Print, for each gamma, both ways at the highest mean reward that both reach."""
    print(f"\n{title}: brightness, DDIM {SAMPLER.steps} steps, eta 1, n = {given.n}, {given.steps} steps")
    print("| gamma | at mean reward | steps: none, PRNO | same class: none | PRNO | difference | P(z): none | PRNO |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    plain, found = optimise(digits, labels, Unregularized(), given), {}
    for gamma in given.gamma:
        kept = optimise(digits, labels, PRNO(gamma), given)
        level = min(float(way[0].mean(0).max()) for way in (plain, kept))
        at = [int((way[0].mean(0) >= level - 1e-9).nonzero()[0]) for way in (plain, kept)]
        shares = [way[1][:, step] for way, step in zip((plain, kept), at, strict=True)]
        typical = [math.exp(median(way[2][:, step].tolist())) for way, step in zip((plain, kept), at, strict=True)]
        mean, low, high = interval((shares[1] - shares[0]).tolist())
        print(
            f"| {gamma:g} | {level:.4f} | {at[0]}, {at[1]} | {shares[0].mean():.1%} | {shares[1].mean():.1%} | "
            f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}] | {typical[0]:.2g} | {typical[1]:.2g} |",
            flush=True,
        )
        found[f"{gamma:g}"] = {"level": level, "difference": mean, "low": low, "high": high}
        found[f"curves, gamma {gamma:g}"] = [way.mean(0).tolist() for way in (*plain[:2], *kept[:2])]
    return found


def main() -> None:
    """Train the conditional model, or read it, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--gamma", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--first_seed", type=int, default=10_000, help="no setting was chosen on the default ones")
    parser.add_argument("--training_steps", type=int, default=1200)
    parser.add_argument("--weights", type=Path, help="keeps the conditional model; read where it is there")
    parser.add_argument("--models", nargs="+", default=["conditional", "zoo"])
    parser.add_argument("--json", type=Path)
    given, found = parser.parse_args(), {}
    if "conditional" in given.models:
        if given.weights and given.weights.is_file():
            denoiser = conditional(0)
            denoiser.load_state_dict(torch.load(given.weights, weights_only=True))
        else:
            denoiser = conditional(given.training_steps)
            if given.weights:
                torch.save(denoiser.state_dict(), given.weights)
        labels = [i % 10 for i in range(given.n)]
        found["conditional"] = compare("with classes", Digits(denoiser=denoiser), labels, given)
    if "zoo" in given.models:
        found["zoo"] = compare("without classes", Digits(), None, given)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
