"""Time of one constrained training step over a plain diffusion step: same model, same batch, alternating.

    python benchmarks/step_time.py [--pairs 30] [--json step_time.json]

Prints the median ratio of each formulation with its 95 % interval (of the median, by order statistics). The step is the
whole of it: drawing noise, forward, penalty, backward, optimiser, EMA. Ratios of one run only; times are not compared
across machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from constrained_diffusion import ClassProbability, ConstrainedDiffusion, PretrainedDenoiser
from constrained_diffusion.constraints import PretrainedClassifier
from constrained_diffusion.datamodules import Batch, DiffusionDataModule, TensorRows

LIMITS = {"algorithm1": 1.05, "anchored_algorithm1": 1.40, "conditioned_algorithm1": 1.40}


class Noise(DiffusionDataModule):
    """Random images: the time of a step does not depend on what they show."""

    def build(self) -> tuple[TensorRows, TensorRows]:
        return TensorRows(torch.rand(512, 1, 28, 28)), TensorRows(torch.rand(1, 1, 28, 28))


class Step:
    """One module with its optimiser, ready to step."""

    def __init__(self, formulation: str | None, batch_size: int, precision: Any) -> None:
        constraint = ClassProbability(PretrainedClassifier("mnist_classifier"), label=4) if formulation else None
        self.module = ConstrainedDiffusion(
            PretrainedDenoiser("mnist_denoiser"),
            constraint,
            formulation or "penalty",
            max_timestep=800,
            optimizer=partial(torch.optim.Adam, lr=1e-6),
        )
        folder = tempfile.mkdtemp()
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
        }
        self.trainer = Trainer(max_steps=1, precision=precision, default_root_dir=folder, accelerator="cpu", **quiet)
        self.trainer.fit(self.module, datamodule=Noise(batch_size=batch_size))
        self.module.log = self.module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
        self.module.penalty_coefficient.fill_(0.05)
        self.optimizer = self.module.configure_optimizers()

    def __call__(self, batch: Batch) -> float:
        start = time.perf_counter()
        with self.trainer.precision_plugin.forward_context():
            loss = self.module.training_step(batch, 0)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.module.update_ema()
        return time.perf_counter() - start


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median and the order statistics that bound it with about 95 % confidence."""
    ordered, n = sorted(values), len(values)
    half = int(0.98 * n**0.5)
    return statistics.median(ordered), ordered[max(n // 2 - half, 0)], ordered[min(n // 2 + half, n - 1)]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    steps = {name: Step(name, given.batch_size, given.precision) for name in (None, *LIMITS)}
    batch = Batch(torch.rand(given.batch_size, 1, 28, 28))
    for step in steps.values():
        step(batch)
        step(batch)
    ratios: dict[str, list[float]] = {name: [] for name in LIMITS}
    plain = []
    for _ in range(given.pairs):
        for name in LIMITS:
            plain.append(steps[None](batch))
            ratios[name].append(steps[name](batch) / plain[-1])
    table = {}
    print(
        f"plain step: {statistics.median(plain) * 1000:.0f} ms, batch {given.batch_size}, {given.precision}, "
        f"{torch.get_num_threads()} threads, {given.pairs} pairs"
    )
    for name, values in ratios.items():
        median, low, high = median_interval(values)
        table[name] = {"median": median, "low": low, "high": high, "limit": LIMITS[name], "pairs": given.pairs}
        print(f"{name:22s} {median:.3f} [{low:.3f}, {high:.3f}]  aim <= {LIMITS[name]:.2f}")
    if given.json:
        given.json.write_text(json.dumps({"plain_seconds": statistics.median(plain), "ratios": table}, indent=2))


if __name__ == "__main__":
    main()
