"""What constraints cost, measured: one table.

    python benchmarks/speed.py [--pairs 30] [--json speed.json] [--only steps memory import help compile ranks ...]

Where there is a GPU, the paper's network of 113.7 M parameters is measured on it, else the zoo's MNIST denoiser on the
CPU. Ratios are medians of alternating pairs with about 95 % intervals (order statistics); times are not compared across
machines, and a busy machine makes them worse.

| part | what it measures |
|---|---|
| steps | a constrained step over a plain diffusion step, and the naive two-pass step beside it |
| memory | the peak of what a step allocates, over that of a plain step |
| import | what `import constrained_diffusion` adds to importing torch and lightning |
| help | `lightning fit --help` over that import |
| compile | steps with `torch.compile`, over steps without |
| ranks | rows per second of two gloo ranks over one |
| evaluation | the validations' share of a fit of `mnist.yaml` |
| sync | how often a step between log steps makes the host wait for the device |
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from speed_parts import compiled, evaluation, memory, ranks, starting, steps, sync
from speed_parts.step import on_gpu

PARTS = {
    "steps": steps.rows,
    "memory": memory.rows,
    "import": starting.import_rows,
    "help": starting.help_rows,
    "compile": compiled.rows,
    "ranks": ranks.rows,
    "evaluation": evaluation.rows,
    "sync": sync.rows,
}


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if on_gpu() else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure, print the table as it grows, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="alternating pairs of steps")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--starts", type=int, default=7, help="processes started for import and help")
    parser.add_argument("--rank_steps", type=int, default=20, help="steps of a rank that are timed")
    parser.add_argument("--rank_runs", type=int, default=3, help="fits of each number of ranks")
    parser.add_argument("--epochs", type=int, default=38, help="between two validations; 38 as shipped")
    parser.add_argument("--data", nargs="*", default=[], help="settings of the fit's data, for example samples=512")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    facts, table = machine(), []
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for part in given.only:
        for row in PARTS[part](given):
            print(row.text(), flush=True)
            table.append({"part": part, **row.as_json()})
    if given.json:
        settings = {name: value for name, value in vars(given).items() if name != "json"}
        given.json.write_text(json.dumps({"machine": facts, "settings": settings, "rows": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
