"""How much ink can be put on digits that are still digits? Noise optimisation, loss guidance and best-of-N.

    python benchmarks/dno_ink.py [--n 64] [--steps 20] [--json file]

Brightness, the mean pixel, has no target: each method gets more of it by being pushed harder, until the digit is gone.
So each is run at several strengths, all with the same number of denoiser calls a sample (a backward pass is one), and
they are compared where so many samples are still recognised: two classifiers, trained apart and seen by no method, give
the same class more than 0.9. (The judge alone is as sure of most white rectangles.)
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dno_mnist import SAMPLER, Digits
from torch import Tensor

from constrained_diffusion.diffusion.sampler import Sampler, sample, seeded_noise
from constrained_diffusion.domains.images.classifiers import PretrainedClassifier
from constrained_diffusion.domains.images.pixels import Brightness
from constrained_diffusion.noise_optimization.baselines import best_of_n, loss_guided
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer
from constrained_diffusion.noise_optimization.regularizers import PRNO

REWARD = Brightness()
GAMMAS = (0.1, 1.0)
RATES = (0.005, 0.01, 0.02, 0.03, 0.05)
CHAINS = ((1, 1), (5, 1), (1, 10))  #: of guidance: best of so many chains, Monte-Carlo samples
SCALES = (1.0, 3.0, 6.0, 10.0, 20.0, 30.0, 45.0, 60.0)
RECOGNISED = (0.75, 0.7, 0.6, 0.5)  #: shares of digits that are asked for; of unpushed ones they are some 0.77


@torch.no_grad()
def recognised(digits: Digits, clean: Tensor) -> Tensor:
    """Return, for each sample, whether both classifiers are sure of the same class."""
    (label, sure), (confidence, other) = digits.classes(clean), _classifier()(clean).softmax(1).max(1)
    return (label == other) & (sure > 0.9) & (confidence > 0.9)


@cache
def _classifier() -> PretrainedClassifier:
    return PretrainedClassifier("mnist_classifier").eval()


def optimised(digits: Digits, seeds: range, steps: int) -> Iterator[tuple[str, str, Tensor]]:
    """Yield noise optimisation at each weight of PRNO and each learning rate."""
    for gamma in GAMMAS:
        for lr in RATES:
            of = partial(torch.optim.Adam, lr=lr)
            optimizer = NoiseOptimizer(digits.mapping, REWARD, steps, PRNO(gamma), optimizer=of)
            runs = (range(first, min(first + 16, seeds.stop)) for first in range(seeds.start, seeds.stop, 16))
            records = [record for part in runs for record in optimizer.run(digits.noise(part), keys=list(part))]
            yield f"noise optimisation, gamma {gamma:g}", f"rate {lr:g}", torch.stack([r.sample for r in records])


def guided(digits: Digits, seeds: range, calls: int) -> Iterator[tuple[str, str, Tensor]]:
    """Yield loss guidance, as one long chain or as the best of shorter ones, at each scale."""
    schedule, n = digits.denoiser.noise_schedule, len(seeds)
    for chains, samples in CHAINS:
        sampler = Sampler(steps=calls // 2 // chains, eta=1.0)
        for scale in SCALES:
            predict = loss_guided(digits.predict, schedule, lambda x: REWARD(digits.finish(x)), scale, samples)
            draws = (
                seeded_noise(
                    range(seeds.start + i * n, seeds.stop + i * n),
                    digits.denoiser.sample_shape,
                    sampler,
                    schedule,
                )
                for i in range(chains)
            )
            best, _ = best_of_n(
                lambda z, _, of=predict, by=sampler: digits.finish(sample(of, schedule, z, by)),  # type: ignore[misc]
                lambda x, _: REWARD(x),
                draws,
                [None] * n,
            )
            yield f"loss guidance, n = {samples}, best of {chains} x {sampler.steps} steps", f"scale {scale:g}", best


def drawn(digits: Digits, seeds: range, calls: int) -> Iterator[tuple[str, str, Tensor]]:
    """Yield best-of-N, which has no strength but N."""
    n, draws = len(seeds), calls // SAMPLER.steps
    for name, count in (("one sample", 1), (f"best of {draws}", draws)):
        noise = (digits.noise(range(seeds.start + i * n, seeds.stop + i * n)) for i in range(count))
        yield name, "", best_of_n(lambda z, _: digits.mapping(z), lambda x, _: REWARD(x), noise, [None] * n)[0]


def main() -> None:
    """Run every method at every strength, and print what ink leaves how many digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=64, help="samples")
    parser.add_argument("--steps", type=int, default=20, help="of noise optimisation; the others get its calls")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["drawn", "optimised", "guided"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    digits, seeds = Digits(), range(given.first_seed, given.first_seed + given.n)
    calls = SAMPLER.steps * (2 * given.steps + 1)
    ways = {
        "drawn": drawn(digits, seeds, calls),
        "optimised": optimised(digits, seeds, given.steps),
        "guided": guided(digits, seeds, calls),
    }
    print(f"mean pixel of {given.n} samples, {calls} calls each\n\n| method | strength | mean pixel | recognised |")
    print("|---|---|---|---|", flush=True)
    rows: list[dict[str, Any]] = []
    for method in given.methods:
        for name, strength, clean in ways[method]:
            sure, value = recognised(digits, clean), REWARD(clean)
            rows.append({"method": name, "strength": strength, "ink": value.tolist(), "recognised": sure.tolist()})
            error = 1.96 * float(value.std()) / given.n**0.5
            print(f"| {name} | {strength} | {value.mean():.3f} ± {error:.3f} | {sure.float().mean():.1%} |", flush=True)
    compare(rows)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


def ink_at(ink: list[float], shares: list[float], share: float) -> float:
    """Return the most ink at which `share` is recognised, linear between neighbouring strengths; nan where none is.

    >>> ink_at([0.1, 0.2, 0.4], [0.9, 0.8, 0.4], 0.6)
    0.30000000000000004
    """
    best = max((value for value, found in zip(ink, shares, strict=True) if found >= share), default=math.nan)
    for (low, high), (at_low, at_high) in zip(pairwise(ink), pairwise(shares), strict=True):
        if at_low >= share > at_high and high > low:
            best = max(best, low + (high - low) * (at_low - share) / (at_low - at_high))
    return best


def compare(rows: list[dict[str, Any]], resamples: int = 1000) -> None:
    """Print, for each share that must be recognised, the most ink of each method, with a bootstrap over samples."""
    print("\nink at which so many are recognised [95 %]:\n\n| method |" + "".join(f" {s:.0%} |" for s in RECOGNISED))
    print("|---|" + "---|" * len(RECOGNISED))
    for method in dict.fromkeys(row["method"] for row in rows):
        of = [row for row in rows if row["method"] == method]
        ink, sure = (np.array([row[key] for row in of], float) for key in ("ink", "recognised"))
        draws = np.random.default_rng(0).integers(0, ink.shape[1], (resamples, ink.shape[1]))
        cells = []
        for share in RECOGNISED:
            found = ink_at(ink.mean(1).tolist(), sure.mean(1).tolist(), share)
            again = [ink_at(ink[:, d].mean(1).tolist(), sure[:, d].mean(1).tolist(), share) for d in draws]
            low, high = np.nanquantile(again, [0.025, 0.975]) if not math.isnan(found) else (math.nan, math.nan)
            cells.append("none" if math.isnan(found) else f"{found:.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
