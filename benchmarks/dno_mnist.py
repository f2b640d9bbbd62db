"""Noise optimisation on the zoo's digits: black boxes, baselines at equal calls, batches.

    python benchmarks/dno_mnist.py blackbox|baselines|throughput [--n N] [--json file]

- blackbox: JPEG size and class log-odds as black boxes: ZO-SGD, Hybrid-1 and Hybrid-2 with q = 16, 8, 4, and at equal
  numbers of evaluations.
- baselines: best-of-N and loss guidance at the denoiser calls of noise optimisation.
- throughput: a batch of 8 against 8 runs of one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion import PretrainedDenoiser
from constrained_diffusion.condition import Condition
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.diffusion.sampler import Sampler, sample, seeded_noise
from constrained_diffusion.domains.images.classifiers import PretrainedClassifier
from constrained_diffusion.domains.images.jpeg import JPEGCompressibility
from constrained_diffusion.domains.images.log_odds import LogOdds
from constrained_diffusion.domains.images.pixels import Brightness, Ink
from constrained_diffusion.noise_optimization.baselines import best_of_n, loss_guided
from constrained_diffusion.noise_optimization.gradients import ZOSGD, GradientEstimator, Hybrid1, Hybrid2
from constrained_diffusion.noise_optimization.mapping import NoiseToSample
from constrained_diffusion.noise_optimization.memory import Predict
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer
from constrained_diffusion.noise_optimization.regularizers import PRNO, Regularizer, Unregularized
from constrained_diffusion.objectives import Reward
from constrained_diffusion.objectives.converters import WeightedSum

SAMPLER = Sampler(steps=10, eta=1.0)
RATES = (0.01, 0.03, 0.1, 0.3)  #: of noise optimisation, and
SCALES = (300.0, 3000.0, 30000.0, 300000.0)  #: of loss guidance: each is shown at its best of four, tuning not counted


class Digits:
    """A denoiser, the zoo's by default, as a map from noise to digits, and the judge."""

    def __init__(self, sampler: Sampler = SAMPLER, denoiser: Denoiser | None = None) -> None:
        self.denoiser = (denoiser or PretrainedDenoiser("mnist_denoiser")).requires_grad_(False).eval()
        self.judge = PretrainedClassifier("mnist_judge").requires_grad_(False).eval()
        self.sampler = sampler
        self.mapping = NoiseToSample(
            self.predictor, self.denoiser.noise_schedule, sampler, self.finish, memory_budget="unlimited"
        )

    def predictor(self, labels: list[int | None]) -> Predict:
        """Return the prediction for rows of these classes; None for a denoiser that knows no classes."""
        known = [label for label in labels if label is not None]
        return partial(self.predict, condition={"class_labels": torch.tensor(known)} if known else None)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition | None = None) -> Prediction:
        return self.denoiser.predict(noisy, timesteps, condition)

    def finish(self, sample: Tensor) -> Tensor:
        codec = self.denoiser.codec
        return codec.decode(codec.clamp(sample))

    def noise(self, seeds: range) -> Tensor:
        schedule = self.denoiser.noise_schedule
        return seeded_noise(seeds, self.denoiser.sample_shape, self.sampler, schedule)

    @torch.no_grad()
    def classes(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the judge's class and its confidence."""
        confidence, label = self.judge(clean).softmax(1).max(1)
        return label, confidence


def _optimise(
    digits: Digits, reward: Any, estimator: GradientEstimator | None, n: int, steps: int, regularizer: Regularizer
) -> list[list[float]]:
    """Return the rewards of each sample at each step."""
    rows: list[list[float]] = []
    for first in range(0, n, 16):
        seeds = range(first, min(first + 16, n))
        optimizer = NoiseOptimizer(
            digits.mapping, reward, steps=steps, regularizer=regularizer, estimator=estimator, permutations=0
        )
        rows += [record.rewards for record in optimizer.run(digits.noise(seeds), keys=list(seeds))]
    return rows


def blackbox(given: argparse.Namespace) -> dict[str, Any]:
    """Compare the three estimators on rewards whose gradient is not used."""
    n, steps, digits = given.n or 32, given.steps or 50, Digits()
    odds = LogOdds(PretrainedClassifier("mnist_classifier"), 3)
    rewards = {"JPEG size (kB)": JPEGCompressibility(), "log-odds of 3": odds}
    marks = range(10, steps + 1, 10)
    found: dict[str, Any] = {}
    for title, counts in (("q = 16 / 8 / 4", (16, 8, 4)), ("equal evaluations, q = 8", (8, 8, 8))):
        for name, reward in rewards.items():
            kinds = zip((ZOSGD, Hybrid1, Hybrid2), counts, strict=True)
            estimators = {f"{kind.__name__}, q = {q}": kind(perturbations=q, normalize=True) for kind, q in kinds}
            print(f"\n{name}, {title}: mean of {n} samples (best so far in brackets)")
            print("| estimator | start | " + " | ".join(f"step {s}" for s in marks) + " | seconds a step |")
            print("|---|---|" + "---|" * (steps // 10 + 1))
            for words, estimator in estimators.items():
                started = time.perf_counter()
                way = torch.tensor(_optimise(digits, reward, estimator, n, steps, Unregularized()))
                each = (time.perf_counter() - started) / steps / math.ceil(n / 16)
                best = way.cummax(1).values.mean(0)
                cells = [f"{way.mean(0)[s]:.3f} ({best[s]:.3f})" for s in marks]
                print(f"| {words} | {way.mean(0)[0]:.3f} | " + " | ".join(cells) + f" | {each:.2f} |", flush=True)
                found[f"{name}, {title}, {words}"] = {"mean": way.mean(0).tolist(), "best": best.tolist()}
    return found


def baselines(given: argparse.Namespace) -> dict[str, Any]:
    """Compare at equal denoiser calls; a backward pass counts as one more call."""
    n, steps, digits = given.n or 32, given.steps or 20, Digits()
    reward: Reward = Ink(target=given.target)
    words = f"-(mean pixel - {given.target})^2"
    if given.odds is not None:
        odds = LogOdds(PretrainedClassifier("mnist_classifier"), given.odds)
        reward, words = WeightedSum([odds, reward], [1.0, 400.0]), f"log-odds of {given.odds} + 400 ({words})"
    seeds, found = range(n), {}
    print(f"reward {words}, {n} samples, DDIM 10 steps")
    print("| method | denoiser calls a sample | mean reward | still a digit (confidence > 0.5) |\n|---|---|---|---|")

    def report(name: str, clean: Tensor, calls: float) -> None:
        value, confident = reward(clean), (digits.classes(clean)[1] > 0.5).float().mean()
        found[name] = {"calls": calls, "reward": float(value.mean()), "digits": float(confident)}
        print(f"| {name} | {calls:.0f} | {value.mean():.3g} | {confident:.1%} |", flush=True)

    with torch.no_grad():
        report("one sample", digits.mapping(digits.noise(seeds)), SAMPLER.steps)
    budget, tried = SAMPLER.steps * (2 * steps + 1), []
    for lr in RATES:
        optimizer = NoiseOptimizer(
            digits.mapping,
            reward,
            steps=steps,
            regularizer=PRNO(given.gamma),
            optimizer=partial(torch.optim.Adam, lr=lr),
        )
        records = optimizer.run(digits.noise(seeds), keys=list(seeds))
        clean = torch.stack([record.sample for record in records])
        tried.append((float(reward(clean).mean()), lr, clean))
    _, lr, clean = max(tried, key=lambda trial: trial[0])
    report(f"noise optimisation, best rate of {len(RATES)} ({lr:g})", clean, budget)

    draws = (digits.noise(range(n + i * n, n + (i + 1) * n)) for i in range(budget // SAMPLER.steps))
    best, _ = best_of_n(lambda z, _: digits.mapping(z), lambda x, _: reward(x), draws, [None] * n)
    report(f"best of {budget // SAMPLER.steps}", best, budget)
    long = Sampler(steps=budget // 2, eta=1.0)
    z = seeded_noise(seeds, digits.denoiser.sample_shape, long, digits.denoiser.noise_schedule)
    for samples in (1, 10):
        tried = []
        for scale in SCALES:
            of = partial(_in_data_units, digits, reward)
            guided = loss_guided(digits.predict, digits.denoiser.noise_schedule, of, scale, samples)
            clean = digits.finish(sample(guided, digits.denoiser.noise_schedule, z, long)).detach()
            tried.append((float(reward(clean).mean()), scale, clean))
        _, scale, clean = max(tried, key=lambda trial: trial[0])
        report(f"loss guidance, n = {samples}, best scale of {len(SCALES)} ({scale:g})", clean, budget)
    return found


def _in_data_units(digits: Digits, reward: Callable[[Tensor], Tensor], clean: Tensor) -> Tensor:
    return reward(digits.finish(clean))


def throughput(given: argparse.Namespace) -> dict[str, Any]:
    """Time a batch of 8 and 8 runs of one."""
    n, steps, digits = given.n or 8, given.steps or 5, Digits()

    def timed(batches: list[range]) -> float:
        start = time.perf_counter()
        for seeds in batches:
            NoiseOptimizer(digits.mapping, Brightness(), steps=steps).run(digits.noise(seeds), keys=list(seeds))
        return time.perf_counter() - start

    timed([range(1)])
    together, apart = [], []
    for _ in range(3):
        together.append(timed([range(n)]))
        apart.append(timed([range(i, i + 1) for i in range(n)]))
    ratio = median(apart) / median(together)
    print(f"batch of {n}: {median(together):.2f} s; {n} runs of one: {median(apart):.2f} s; {ratio:.2f} x (aim >= 1.5)")
    return {"ratio": ratio}


def main() -> None:
    """Run one comparison."""
    parts = {"blackbox": blackbox, "baselines": baselines, "throughput": throughput}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--n", type=int, help="samples")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--gamma", type=float, default=1.0, help="weight of PRNO")
    parser.add_argument("--target", type=float, default=0.25, help="mean pixel that `baselines` aims at")
    parser.add_argument("--odds", type=int, help="class whose log-odds `baselines` adds, by the training classifier")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = parts[given.part](given)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
