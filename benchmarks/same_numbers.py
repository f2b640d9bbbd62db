"""Whether the numbers moved: an earlier commit and this checkout do the same jobs, and every tensor is compared.

    python benchmarks/same_numbers.py [--jobs mnist noise maze polymer] [--base COMMIT] [--json same.json]

Both trees run with this Python, on one thread, each job in processes of its own: fits of a few steps with the samples
that they draw, and a noise optimisation. Weights, EMA, optimiser and controllers' state, logged losses, samples and
noise must have the same bits; exit code 1 where they have not. What differs on purpose stands in
`same_parts/compare.py` (EXPECTED), what has another name now in `same_parts/jobs.py` (RENAMED) and
`same_parts/tensors.py` (PREFIXES). A job whose extra is not installed is skipped, with a word.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning
import torch
from same_parts.compare import EXPECTED, differences
from same_parts.jobs import JOBS, RENAMED
from same_parts.tensors import collect
from same_parts.trees import do, git, worktree

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 10  #: differences printed of each job; the JSON has them all


def compare(name: str, base: Path, folder: Path) -> dict[str, Any]:
    """Do a job in both trees; return its row: how many tensors there are, and which differ.

    Args:
        name: of the job.
        base: the other tree.
        folder: where the runs go, a new one.
    """
    row: dict[str, Any] = {"job": name, "tensors": 0, "seconds": 0.0, "note": JOBS[name].lacks(), "differences": []}
    if row["note"]:
        return {**row, "verdict": "skipped"}
    start, sides = time.monotonic(), {"base": (base, {}), "current": (ROOT, RENAMED)}

    def tensors(side: str) -> dict[str, torch.Tensor]:
        tree, renamed = sides[side]
        return collect(do(JOBS[name], tree, renamed, folder / side), folder / side / "cache")

    try:
        with ThreadPoolExecutor() as pool:
            before, now = pool.map(tensors, sides)
    except (RuntimeError, ValueError, OSError) as error:
        return {**row, "verdict": "failed", "note": str(error), "seconds": time.monotonic() - start}
    found = differences(before, now, EXPECTED, name)
    row |= {"tensors": len(before.keys() | now.keys()), "seconds": time.monotonic() - start}
    verdict = "different" if any(not each.expected for each in found) or not before else "same"
    return {**row, "verdict": verdict, "differences": [each._asdict() for each in found]}


def text(row: dict[str, Any]) -> str:
    """Return the lines of the table for one job."""
    unexpected = [each for each in row["differences"] if not each["expected"]]
    expected = [each for each in row["differences"] if each["expected"]]
    counts = f"{row['tensors']:6d} tensors {len(unexpected):5d} differ {len(expected):5d} on purpose"
    lines = [f"{row['job']:8s} {row['verdict']:9s} {counts} {row['seconds']:6.0f} s  {row['note']}".rstrip()]
    lines += [f"    {each['name']}: {each['what']}" for each in unexpected[:SHOWN]]
    lines += [f"    .. and {len(unexpected) - SHOWN} more"] * (len(unexpected) > SHOWN)
    lines += [f"    {each['name']}: {each['what']}, because {each['expected']}" for each in expected[:SHOWN]]
    return "\n".join(lines)


def main() -> int:
    """Print the table as it grows, write the JSON; return 1 where a job failed or differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--base", default="201a699", help="the commit to compare with")
    parser.add_argument("--json", type=Path, help="where to write the table with all differences")
    given = parser.parse_args()
    commits = {"base": git(ROOT, "rev-parse", given.base), "current": git(ROOT, "describe", "--always", "--dirty")}
    facts = {"torch": torch.__version__, "lightning": lightning.__version__, "python": platform.python_version()}
    facts |= {"machine": platform.machine(), **commits}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        with worktree(ROOT, given.base, folder / "base") as base:
            for name in given.jobs:
                rows.append(compare(name, base, folder / name))
                print(text(rows[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=2) + "\n")
    return int(any(row["verdict"] in ("different", "failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
