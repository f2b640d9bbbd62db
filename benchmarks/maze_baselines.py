"""The zoo's planner with and without weights touched, at one seed of zones: what each way of keeping out costs.

    python benchmarks/maze_baselines.py [--n 100] [--zones 0] [--fitted run/export] [--safe run/export] [--json file]
        [--ways projection "trained on safe data"]

Rows: the pretrained planner; guidance by the zones' violations (best of three scales, by other seeds); projection of
every predicted clean plan; a control-barrier step; noise optimisation; and, where given, a fine-tuned planner and one
that was trained from scratch on data that is safe.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion import PretrainedDenoiser
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.domains.mazes import ZoneBarrier, ZoneProjection
from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones
from constrained_diffusion.domains.mazes.plan_evaluation import PlanEvaluation
from constrained_diffusion.guides import Guide, LossGuidance
from constrained_diffusion.noise_optimization.mapping import NoiseToSample
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer
from constrained_diffusion.noise_optimization.regularizers import PRNO
from constrained_diffusion.objectives import Feasibility

SAMPLER = Sampler(steps=50, spacing="linspace")
SHORT = Sampler(steps=20, spacing="linspace")  #: of noise optimisation, which goes through it again and again
SCALES, TRIAL_SEED = (1.0, 10.0, 100.0), 500_000
COLUMNS = ("violation_rate", "plan_segment_violation_rate", "executed_violation_rate", "wall_collision_rate")


def noise(model: PretrainedDenoiser, seeds: range, sampler: Sampler = SAMPLER) -> Tensor:
    """Return the noises of seeds."""
    return seeded_noise(seeds, model.sample_shape, sampler, model.noise_schedule)


@torch.no_grad()
def sample(model: PretrainedDenoiser, guide: Guide | None, seeds: range) -> Tensor:
    """Return plans of seeds, `(n, L, S, C)`, in cells."""
    predict = guide(model.predict, model) if guide else model.predict
    return model.codec.decode(SAMPLER(predict, model.noise_schedule, noise(model, seeds)))


def guided(model: PretrainedDenoiser, zones: ForbiddenZones, seeds: range) -> Tensor:
    """Return plans by guidance at the scale that violates least on other seeds."""
    trials = {}
    for scale in SCALES:
        plans = sample(model, LossGuidance(zones, scale=scale), range(TRIAL_SEED, TRIAL_SEED + 20))
        trials[scale] = float((zones(plans) > 0).any(1).float().mean())
    best = min(trials, key=lambda scale: trials[scale])
    print(f"(guidance: violations on other seeds by scale {trials})")
    return sample(model, LossGuidance(zones, scale=best), seeds)


def optimised(model: PretrainedDenoiser, zones: ForbiddenZones, seeds: range, steps: int = 60) -> Tensor:
    """Return plans whose noise was optimised."""

    def finish(plans: Tensor) -> Tensor:
        return model.codec.decode(plans)

    mapping = NoiseToSample(lambda _: model.predict, model.noise_schedule, SHORT, finish, memory_budget="unlimited")
    regularizer = PRNO(0.01)
    optimizer = NoiseOptimizer(mapping, Feasibility(zones), steps=steps, regularizer=regularizer, stop_reward=0.0)
    found = []
    for part in range(seeds.start, seeds.stop, 25):
        keys = list(range(part, min(part + 25, seeds.stop)))
        found += [
            record.sample for record in optimizer.run(noise(model, range(keys[0], keys[-1] + 1), SHORT), keys=keys)
        ]
    return torch.stack(found)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--zones", type=int, default=0, help="seed of the two zones")
    parser.add_argument("--planner", default="maze2d_planner")
    parser.add_argument("--fitted", help="export of a fit with these zones")
    parser.add_argument("--safe", help="export of a planner that was trained on safe data alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ways", nargs="*", help="only these rows; all by default")
    given = parser.parse_args()
    model = PretrainedDenoiser(given.planner).requires_grad_(False)
    zones, seeds = ForbiddenZones("medium", count=2, seed=given.zones), range(given.n)
    ways: dict[str, Callable[[], Tensor]] = {
        "pretrained": lambda: sample(model, None, seeds),
        "guidance": lambda: guided(model, zones, seeds),
        "projection": lambda: sample(model, ZoneProjection(zones), seeds),
        "control-barrier step": lambda: sample(model, ZoneBarrier(zones), seeds),
        "noise optimisation": lambda: optimised(model, zones, seeds),
    }
    for name, folder in (("fine-tuned", given.fitted), ("trained on safe data", given.safe)):
        if folder:
            other = PretrainedDenoiser(folder).requires_grad_(False)
            ways[name] = lambda other=other: sample(other, None, seeds)  # type: ignore[misc]
    print(f"zones {zones.centres.tolist()}, radius 0.3, n = {given.n}")
    print("| way | point in a zone | segment | executed | walls | long steps | curvature | seconds a plan |")
    print("|---|---|---|---|---|---|---|---|")
    found: dict[str, Any] = {}
    for name, way in ((name, way) for name, way in ways.items() if name in (given.ways or ways)):
        started = time.perf_counter()
        plans = way()
        seconds = (time.perf_counter() - started) / given.n
        judge = PlanEvaluation("medium", reference=given.planner, executed=given.n)
        judge.bind([zones])
        judge.update(plans)
        measured = judge.compute()
        flat = {**measured, **measured["metrics"], "seconds_per_plan": seconds}
        found[name] = {key: value for key, value in flat.items() if isinstance(value, int | float)}
        cells = [f"{flat[key]:.1%}" for key in COLUMNS]
        cells += [f"{flat['long_step_rate']:.2%}", f"{flat['curvature']:.2e}", f"{seconds:.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
