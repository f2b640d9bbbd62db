"""Keep the zoo's planner out of zones drawn from five seeds (`lightning fit` and `test`), and print the pooled table.

    python benchmarks/maze_zones.py [--config maze2d.yaml] [--seeds 0 1 2 3 4] [--n 1000] [--runs runs/benchmark]

Everything is the shipped config but for the zones, two of a seed each, and the number of test samples. The figures are
those of each run's `results.json`; shares are pooled over seeds, with exact 95 % intervals (bounds where one-sided).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from commands import fit_and_test

from constrained_diffusion.cli.runs import find_config
from constrained_diffusion.statistics import clopper_pearson_interval, clopper_pearson_upper


def fit(config: dict[str, Any], seed: int, n: int, runs: Path) -> dict[str, Any]:
    """Fit and test with the zones of one seed in processes of their own; return its results."""
    listed = config["model"]["init_args"]["constraints"]
    listed = listed if isinstance(listed, list) else [listed]
    zones = next(constraint for constraint in listed if constraint["class_path"] == "ForbiddenZones")
    zones["init_args"].pop("centres", None)
    zones["init_args"] |= {"count": 2, "seed": seed}
    config["data"]["init_args"]["test_samples"] = n
    return fit_and_test(config, f"zones_{seed}", runs)


def pooled(results: list[dict[str, Any]], side: str, key: str, of: str = "n") -> tuple[int, int]:
    """Return how many plans of all seeds, and of how many, a share counts."""
    rows = [result[side] for result in results]
    counts = [row["n"] if of == "n" else row["metrics"][of] for row in rows]
    shares = [row[key] if key in row else row["metrics"][key] for row in rows]
    return sum(round(share * count) for share, count in zip(shares, counts, strict=True)), sum(counts)


def cell(hits: int, n: int) -> str:
    """Write a share with its interval and, where it is small, its upper bound."""
    low, high = clopper_pearson_interval(hits, n)
    return f"{hits / n:.2%} [{low:.2%}, {high:.2%}], bound {clopper_pearson_upper(hits, n):.2%}"


def table(results: list[dict[str, Any]]) -> str:
    """Return the pooled table."""
    lines = ["| figure | pretrained | after |", "|---|---|---|"]
    rows = [
        ("plans with a point in a zone", "violation_rate", "n"),
        ("plans with a segment through a zone", "plan_segment_violation_rate", "n"),
        ("executed rollouts with a violation", "executed_violation_rate", "executed_n"),
        ("wall collisions", "wall_collision_rate", "n"),
    ]
    if results[0]["after"]["metrics"].get("goal_at_end_rate") is not None:
        rows += [
            ("goal reached at the end", "goal_at_end_rate", "n"),
            ("goal reached at the end, executed", "executed_goal_at_end_rate", "executed_n"),
        ]
    for name, key, of in rows:
        lines.append(
            f"| {name} | " + " | ".join(cell(*pooled(results, s, key, of)) for s in ("before", "after")) + " |"
        )
    for name, key in (("steps longer than the data's p99.9", "long_step_rate"), ("p99 of steps", "step_p99")):
        values = [fmean(result[side]["metrics"][key] for result in results) for side in ("before", "after")]
        lines.append(f"| {name} | {values[0]:.4f} | {values[1]:.4f} |")
    for name in ("curvature", "acceleration"):
        values = [fmean(result[side]["metrics"][name] for result in results) for side in ("before", "after")]
        lines.append(f"| {name} | {values[0]:.2e} | {values[1]:.2e} |")
    seconds = [f"{result['command_seconds']:.0f}" for result in results]
    return "\n".join([*lines, f"\nfit, whole command, seconds: {', '.join(seconds)}"])


def main() -> None:
    """Run the seeds one after the other and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="maze2d.yaml")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--json", type=Path, help="where to keep every run's results")
    given = parser.parse_args()
    results: list[dict[str, Any]] = []
    for seed in given.seeds:
        config = yaml.safe_load(find_config(given.config).read_text())
        results.append(fit(config, seed, given.n, given.runs.absolute()))
        last = results[-1]
        rates = [f"{last[side]['violation_rate']:.2%}" for side in ("before", "after")]
        print(f"zones of seed {seed}: {rates[0]} -> {rates[1]}, {last['status']}", flush=True)
        if given.json:
            given.json.write_text(json.dumps(results, indent=2))
    print(table(results))


if __name__ == "__main__":
    main()
