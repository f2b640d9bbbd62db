"""Remove each digit in turn (`lightning fit` and `test`) and print one table.

    python benchmarks/mnist_removal.py [--config mnist.yaml] [--labels 0 1 .. 9] [--n 5000] [--runs runs/benchmark]

Everything is the shipped config but for `label` and the number of test samples; the figures come from each run's
`results.json`, the marks from the limits of the table in docs/mnist.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from commands import fit_and_test

from constrained_diffusion.cli.runs import find_config

COLUMNS = ("label", "before", "after", "upper 95 %", "TV", "floor", "non-digits", "FID", "KID", "status", "fit s")


def remove(config: dict[str, Any], label: int, n: int, runs: Path) -> dict[str, Any]:
    """Fit and test one label in processes of their own; return its results."""
    config["model"]["init_args"]["constraints"]["init_args"]["label"] = label
    config["data"]["init_args"]["test_samples"] = n
    return fit_and_test(config, f"digit_{label}", runs)


def row(results: dict[str, Any]) -> list[str]:
    """Return one line of the table; a figure that misses its limit carries a star."""
    before, after = results["before"], results["after"]
    b, a = before["metrics"], after["metrics"]

    def mark(text: str, held: bool) -> str:
        return text if held else text + "*"

    return [
        results["subject"],
        f"{before['violation_rate']:.2%}",
        mark(f"{after['violation_rate']:.2%}", after["violation_rate"] <= 0.005),
        mark(f"{after['violation_upper_95']:.2%}", after["violation_upper_95"] <= 0.01),
        mark(f"{a['total_variation']:.3f}", a["total_variation"] <= 0.05),
        f"{a['total_variation_noise_floor']:.3f}",
        mark(
            f"{b['non_digit_rate']:.1%} -> {a['non_digit_rate']:.1%}", a["non_digit_rate"] <= b["non_digit_rate"] + 0.01
        ),
        mark(f"{b['fid']:.2f} -> {a['fid']:.2f}", a["fid"] <= b["fid"]),
        f"{b['kid']:.4f} -> {a['kid']:.4f}",
        results["status"],
        mark(f"{results['command_seconds']:.0f}", results["command_seconds"] <= 300),
    ]


def main() -> None:
    """Run the labels one after the other and print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mnist.yaml")
    parser.add_argument("--labels", type=int, nargs="*", default=list(range(10)))
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    given = parser.parse_args()
    config = yaml.safe_load(find_config(given.config).read_text())
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for label in given.labels:
        print("| " + " | ".join(row(remove(config, label, given.n, given.runs.absolute()))) + " |", flush=True)


if __name__ == "__main__":
    main()
