"""Does PRNO keep a digit's class? Brightness, with and without it, at equal mean reward, by the independent judge.

    python benchmarks/dno_class.py [--gamma 0.1 1] [--n 128] [--steps 40] [--guidance 4] [--weights dno_class.pt]

Two models: the zoo's denoiser taught the classes of its own samples, under classifier-free guidance, as models with
prompts are used; and the zoo's denoiser as it is, which knows no classes. PRNO keeps the noise typical, and typical
noise gives what the model draws under its condition; a model without any is free to draw another digit.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from dno_mnist import SAMPLER, Digits
from guided_digits import taught, untrained
from torch import Tensor

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.domains.images.pixels import Brightness
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer, Run
from constrained_diffusion.noise_optimization.regularizers import PRNO, Regularizer, Unregularized

ROWS = 32  #: that are evaluated together


def optimise(
    digits: Digits,
    labels: list[int] | None,
    regularizer: Regularizer,
    given: argparse.Namespace,
    until: float = math.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return reward, whether the class is the first one, and log P(z), `(n, steps + 1)` each.

    It ends early once the mean reward of all reaches `until`.
    """
    runs: list[Run] = []
    for first in range(0, given.n, ROWS):
        places = range(first, min(first + ROWS, given.n))
        seeds = range(given.first_seed + first, given.first_seed + places.stop)
        context = [labels[i] for i in places] if labels else [None] * len(places)
        optimizer = NoiseOptimizer(
            digits.mapping,
            lambda clean, _: Brightness()(clean),
            steps=given.steps,
            regularizer=regularizer,
            optimizer=partial(torch.optim.Adam, lr=given.lr),
        )
        runs.append(Run(optimizer, digits.noise(seeds), context, list(seeds)))
    classes: list[Tensor] = []
    while not runs[0].finished:
        classes.append(torch.cat([digits.classes(torch.stack(list(run.step().values())))[0] for run in runs]))
        records = [record for run in runs for record in run.records]
        if fmean(record.rewards[-1] for record in records) >= until:
            break
    kept = torch.stack([now == classes[0] for now in classes], 1).float()
    rewards = torch.tensor([record.rewards for record in records])
    return rewards, kept, torch.tensor([record.log_probabilities for record in records])


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95 % interval (normal)."""
    mean, n = fmean(differences), len(differences)
    spread = 1.96 * math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return mean, mean - spread, mean + spread


def compare(title: str, digits: Digits, labels: list[int] | None, given: argparse.Namespace) -> dict[str, Any]:
    """Print, for each gamma, both ways at the highest mean reward that both reach."""
    ways = {gamma: optimise(digits, labels, PRNO(gamma), given) for gamma in given.gamma}
    highest = max(float(way[0].mean(0).max()) for way in ways.values())
    plain, found = optimise(digits, labels, Unregularized(), given, until=highest), {}
    print(f"\n{title}: brightness, DDIM {SAMPLER.steps} steps, n = {given.n}, {given.steps} steps, rate {given.lr:g}")
    print("| gamma | at mean reward | steps: none, PRNO | same class: none | PRNO | difference | P(z): none | PRNO |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for gamma, kept in ways.items():
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


def classed(given: argparse.Namespace) -> Denoiser:
    """Train the model with classes, or read it where it was kept."""
    if not (given.weights and given.weights.is_file()):
        denoiser = taught(given.training_steps, given.guidance)
        if given.weights:
            torch.save(denoiser.state_dict(), given.weights)
        return denoiser
    denoiser = untrained(given.guidance)
    denoiser.load_state_dict(torch.load(given.weights, weights_only=True))
    return denoiser


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--gamma", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--guidance", type=float, default=4.0, help="scale of classifier-free guidance; 1 is none")
    parser.add_argument("--first_seed", type=int, default=10_000, help="no setting was chosen on the default ones")
    parser.add_argument("--training_steps", type=int, default=1200)
    parser.add_argument("--weights", type=Path, help="keeps the model with classes; read where it is there")
    parser.add_argument("--models", nargs="+", default=["classes", "zoo"])
    parser.add_argument("--json", type=Path)
    given, found = parser.parse_args(), {}
    if "classes" in given.models:
        labels = [i % 10 for i in range(given.n)]
        title = f"with classes, guidance {given.guidance:g}"
        found["classes"] = compare(title, Digits(denoiser=classed(given)), labels, given)
    if "zoo" in given.models:
        found["zoo"] = compare("without classes", Digits(), None, given)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
