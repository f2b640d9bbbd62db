"""The default recipe beside the paper's, with the steps in between: prints the table of docs/mnist.md.

    python benchmarks/mnist_recipes.py mnist mnist_algorithm1 [--runs runs]

Reads the latest run of each config: its validations (EMA samples, n = `data.val_samples`) and its `test`. Make the
runs with `lightning fit --config X.yaml` and `lightning test --config X.yaml --data.init_args.test_samples=5000`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import yaml

from constrained_diffusion.cli.runs import latest_run

COLUMNS = ("recipe", "step", "n", "fours", "upper 95 %", "total variation", "non-digits", "FID", "KID")


def validations(run: Path) -> list[dict[str, float]]:
    """Return the validations of a run, in order, with their step."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in rows if "val/fid" in row]


def table(config: str, run: Path) -> list[list[str]]:
    """Return the lines of one recipe: the pretrained model, the validations, the test."""
    n = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["val_samples"]
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    lines = [[config, "pretrained", *_figures(results["before"])]]
    for row in validations(run):
        measured = {
            "n": n,
            "violation_rate": row["val/violation_rate"],
            "violation_upper_95": row["val/violation_upper_95"],
            "metrics": {key: row.get(f"val/{key}") for key in ("total_variation", "non_digit_rate", "fid", "kid")},
        }
        lines.append([config, f"{row['step'] + 1:.0f}", *_figures(measured)])
    return [*lines, [config, "test", *_figures(results["after"])]]


def _figures(measured: dict[str, Any]) -> list[str]:
    metrics = measured["metrics"]
    variation = metrics["total_variation"]
    return [
        f"{measured['n']:,}",
        f"{measured['violation_rate']:.2%}",
        f"{measured['violation_upper_95']:.2%}",
        "" if variation is None else f"{variation:.3f}",
        f"{metrics['non_digit_rate']:.1%}",
        f"{metrics['fid']:.2f}",
        f"{metrics['kid']:.3f}",
    ]


def main() -> None:
    """Print one markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for config in given.configs:
        for line in table(config, latest_run(config, given.runs)):
            print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
