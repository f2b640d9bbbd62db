"""Fit and test `polymer.yaml` from several seeds in the commands that users type, and print the pooled table.

    python benchmarks/polymer_preferred.py [--config polymer.yaml] [--seeds 0 1 2 3 4] [--n 1000] [--delta 0]
        [--runs runs/benchmark]

A seed has a training set, an order, noise and test samples of its own. Shares are pooled over seeds with exact 95 %
intervals, the ratio of two shares has scipy's, and means are of the seeds' means.
"""

from __future__ import annotations

import argparse
import json
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from commands import fit_and_test
from scipy.stats.contingency import relative_risk

from constrained_diffusion.cli.runs import find_config
from constrained_diffusion.statistics import clopper_pearson_interval

SAMPLES_APART = 10_000  #: of the first seeds of two training sets
SIDES = ("before", "after")
MEANS = ("reward_mean", "respelt_reward_mean", "reward_sd", "judge_mean", "diversity", "similarity", "as_written_rate")


def fit(config: dict[str, Any], seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Fit and test one seed in processes of their own; return its results."""
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    config["seed_everything"] = model["seed"] = data["seed"] = seed
    data |= {"test_samples": given.n, "first_eval_seed": seed * given.n}
    data["first_seed"] = 1_000_000 + SAMPLES_APART * seed
    if given.delta is not None:
        model["constraints"]["init_args"]["threshold"] = given.delta
    delta = model["constraints"]["init_args"]["threshold"]
    return fit_and_test(config, f"preferred_{delta:g}_{seed}", given.runs.absolute())


def hits(results: list[dict[str, Any]], side: str) -> dict[str, tuple[int, int]]:
    """Return of how many samples of all seeds each share holds, and of how many it is."""
    pooled: dict[str, tuple[int, int]] = {}
    for result in results:
        metrics, n = result[side]["metrics"], result[side]["n"]
        valid = round(metrics["validity_rate"] * n)
        distinct = round((metrics["uniqueness_rate"] or 0) * valid)
        found = {
            "validity": (valid, n),
            "uniqueness": (distinct, valid),
            "novelty": (round((metrics["novelty_rate"] or 0) * distinct), distinct),
            "judge: high class": (round(metrics["judge_high_rate"] * n), n),
        }
        pooled = {name: tuple(map(sum, zip(pooled.get(name, (0, 0)), found[name], strict=True))) for name in found}  # type: ignore[misc]
    return pooled


def ratio(after: tuple[int, int], before: tuple[int, int]) -> str:
    """Write the ratio of two shares, hits of n, with its interval."""
    (a, n), (b, m) = after, before
    if not a or not b:
        return "no ratio: a share is 0"
    risk = relative_risk(a, n, b, m)
    low, high = risk.confidence_interval(0.95)
    return f"{risk.relative_risk:.1f} [{low:.1f}, {high:.1f}]"


def table(results: list[dict[str, Any]]) -> str:
    """Return the pooled table."""
    lines = ["| figure | pretrained | after |", "|---|---|---|"]
    shares = {side: hits(results, side) for side in SIDES}
    for name in shares["before"]:
        cells = []
        for side in SIDES:
            found, n = shares[side][name]
            low, high = clopper_pearson_interval(found, max(n, 1))
            cells.append(f"{found / n:.1%} [{low:.1%}, {high:.1%}]" if n else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name in MEANS:
        values = [[result[side]["metrics"].get(name) for result in results] for side in SIDES]
        means = [fmean(kept) if (kept := [value for value in found if value is not None]) else nan for found in values]
        lines.append(f"| {name} | {means[0]:.3f} | {means[1]:.3f} |")
    seconds = ", ".join(f"{result['command_seconds']:.0f}" for result in results)
    times = ratio(*(shares[side]["judge: high class"] for side in ("after", "before")))
    return "\n".join([*lines, f"\nratio of the high class: {times}", f"fit, seconds: {seconds}"])


def main() -> None:
    """Run the seeds one after the other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="polymer.yaml")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)))
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--delta", type=float, help="threshold of s_BT; that of the config when not given")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--json", type=Path, help="keeps every seed's results; those it has are not run again")
    given = parser.parse_args()
    kept = given.json is not None and given.json.is_file()
    results: list[dict[str, Any]] = json.loads(given.json.read_text()) if kept else []
    for seed in sorted(set(given.seeds) - {result["seed"] for result in results}):
        results.append({"seed": seed} | fit(yaml.safe_load(find_config(given.config).read_text()), seed, given))
        after = results[-1]["after"]["metrics"]
        print(f"seed {seed}: {results[-1]['status']}, s_BT {after['reward_mean']:.2f}", flush=True)
        if given.json:
            given.json.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
