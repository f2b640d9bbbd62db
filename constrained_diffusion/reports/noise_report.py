"""`report.html` of a noise optimisation: what was gained, whether the noise stayed typical, and pictures of the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, median
from typing import Any

from constrained_diffusion.reports import plots
from constrained_diffusion.reports.noise_rows import read_results, summary
from constrained_diffusion.reports.overlays import overlays_section
from constrained_diffusion.reports.page import figure, note, write_page
from constrained_diffusion.reports.run_report import before_after_section, read_json
from constrained_diffusion.runtime.run_folder import RunFolder

STRIPS = 8  #: samples that are shown on their way
SHOWN = 48  #: rows of the table


def write_noise_report(folder: Path) -> Path:
    """Write `report.html` from what is in the folder of a noise optimisation, and return its path."""
    run, rows = RunFolder(folder), read_results(folder)
    results = read_json(run.results)
    config = run.config.read_text("utf-8", "replace") if run.config.is_file() else ""
    sections = [
        f"<h1>{escape(run.title)}</h1>",
        f'<p class="verdict plain">{escape(summary(rows))}</p>',
        before_after_section(results),
        overlays_section(run.overlays, str(results.get("overlays_legend") or "")),
        _trajectories(rows),
        _strips(run.strips),
        _table(rows),
        f"<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>" if config else "",
    ]
    return write_page(run.report, run.title, sections)


def _trajectories(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return note("Nothing is finished yet.")
    rewards = _columns(rows, "rewards")
    probabilities = [[math.exp(value) for value in column] for column in _columns(rows, "log_probabilities")]
    try:
        drawings = [
            ("reward, mean over samples", plots.curves([_line("mean", rewards, fmean)], "reward", "step")),
            (
                "P(z): near 0, the noise is no longer what the model knows",
                plots.curves(
                    [_line("median", probabilities, median), _line("smallest", probabilities, min)], "P(z)", "step"
                ),
            ),
        ]
    except ImportError as error:
        return note(f"Plots left out: {error}")
    figures = [f"<figure><figcaption>{escape(n)}</figcaption>{svg.decode()}</figure>" for n, svg in drawings]
    return "\n".join(["<h2>Trajectories</h2>", '<div class="pair">', *figures, "</div>"])


def _columns(rows: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """Return the values of all samples per step; a sample that has stopped keeps its last one."""
    longest = max(len(row[name]) for row in rows)
    return [[row[name][min(step, len(row[name]) - 1)] for row in rows] for step in range(longest)]


def _line(name: str, columns: Sequence[Sequence[float]], middle: Callable[[Sequence[float]], float]) -> plots.Line:
    return plots.Line(name, list(range(len(columns))), [middle(column) for column in columns])


def _strips(folder: Path) -> str:
    files = sorted(folder.glob("*.png"))[:STRIPS]
    if not files:
        return ""
    figures = [figure(file.stem, file.read_bytes()) for file in files]
    words = note("From the start (left) to the last step, at even distances; what is returned is the best of the way.")
    return "\n".join(["<h2>On the way</h2>", words, '<div class="pair">', *figures, "</div>"])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = ("key", "prompt", "reward before", "reward", "P(z) before", "P(z)", "best step", "stopped")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = []
    for row in rows[:SHOWN]:
        figures = [f"{row[key]:.4g}" for key in ("reward_before", "reward", "probability_before", "probability")]
        cells = [row.get("prompt") or "", *figures, f"{row['best_step']} of {row['steps']}", row["stopped"]]
        columns = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{escape(row["key"])}</th>{columns}</tr>')
    more = note(f"{len(rows) - SHOWN} more rows are in results.jsonl." if len(rows) > SHOWN else "")
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table>"
    return f'<h2>Samples</h2>\n<div class="scroll">{table}</div>\n{more}'
