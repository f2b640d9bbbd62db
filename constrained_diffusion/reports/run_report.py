"""`report.html`: a run folder as one page that needs nothing but itself.

`write_report` is a pure function of the run folder. It shows what is there and says in a short note what does not.
All text that comes from files is escaped: configs and names are not trusted.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from constrained_diffusion.evaluation import Figure
from constrained_diffusion.reports import plots, table
from constrained_diffusion.reports.overlays import overlays_section
from constrained_diffusion.reports.page import note, picture, write_page
from constrained_diffusion.runtime.run_folder import RunFolder

MAX_GRIDS = 24  # a longer fit shows so many of its epochs, evenly spread
_STATUSES = ("feasible", "infeasible", "diverged")


class Point(NamedTuple):
    """One logged value."""

    step: float
    epoch: float
    value: float


Metrics = dict[str, list[Point]]
Drawing = tuple[str, Callable[[], bytes | None]]


def write_report(run: Path) -> Path:
    """Write `report.html` from what is in the run folder, and return its path.

    Reads `metrics.csv`, `overlays/*.png`, `grids/*.png`, `results.json`, `status.json`, and `config.yaml` as text to
    show, those that exist. The same files give the same page, byte for byte.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a JSON file there is no JSON object, for instance because it is truncated.
    """
    folder = RunFolder(Path(run).resolve())
    if not folder.path.is_dir():
        raise FileNotFoundError(f"write_report expects a run folder, but '{folder}' is none; give the folder of a fit.")
    results, fit = read_json(folder.results), read_json(folder.status)
    metrics = read_metrics(folder.metrics)
    config = folder.config.read_text("utf-8", "replace") if folder.config.is_file() else ""
    sections = [
        f"<h1>{escape(folder.title)}</h1>",
        _verdict(results, fit, metrics),
        before_after_section(results),
        overlays_section(folder.overlays, str(results.get("overlays_legend") or "")),
        _grids(folder.grids),
        _plots(results, fit, metrics),
        _settings(results, config),
    ]
    return write_page(folder.report, folder.title, sections)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file, {} where there is no file.

    Raises:
        ValueError: the file holds no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content, problem = json.loads(path.read_text("utf-8", "replace")), "other JSON"
    except (ValueError, RecursionError) as error:
        content, problem = None, str(error)
    if not isinstance(content, dict):
        raise ValueError(
            f"expected a complete JSON object in '{path}', got {problem}; run what wrote it (`lightning test`) again, "
            "or delete the file for a report without it."
        )
    return content


def read_metrics(path: Path) -> Metrics:
    """Return each column of Lightning's sparse CSV as its logged points in order of steps; {} without the file."""
    columns: Metrics = {}
    if not path.is_file():
        return columns
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for index, row in enumerate(_csv_rows(file)):
            step, epoch = _float(row.get("step")), _float(row.get("epoch"))
            for name, text in row.items():
                value = _float(text)
                if name and name not in ("step", "epoch") and value is not None:
                    columns.setdefault(name, []).append(Point(index if step is None else step, epoch or 0.0, value))
    return {name: sorted(points, key=lambda point: point.step) for name, points in columns.items()}


def _csv_rows(file: TextIO) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(csv.Error):  # from a broken line on nothing is read
        yield from csv.DictReader(file)


def _verdict(results: Mapping[str, Any], fit: Mapping[str, Any], metrics: Metrics) -> str:
    status, cost = results.get("status", fit.get("status")), results.get("cost") or fit.get("cost")
    lines = table.verdict(results).splitlines()
    if not results:
        lines = [f"{status or 'fitted'}, not tested yet: no results.json."]
        sides = (("By own g", "own_violation"), (f"By the judge, of {table.subject(fit)}", "violation"))
        lines += [told for words, key in sides if (told := _last_validation(words, key, metrics))]
    kind = status if status in _STATUSES else "plain"
    text = "<br>\n".join(map(escape, lines))
    about = f"Cost, in the validation that the fit's verdict is from: {cost}" if cost else ""
    return f'<p class="verdict {kind}">{text}</p>\n{note(about)}'


def _last_validation(words: str, key: str, metrics: Metrics) -> str:
    if not (rates := metrics.get(f"val/{key}_rate")):
        return ""
    upper = metrics.get(f"val/{key}_upper_95")
    bound = f" (upper 95 % bound {table.percent(upper[-1].value, up=True)})" if upper else ""
    return f"{words}: {table.percent(rates[-1].value)} in the last validation, of epoch {rates[-1].epoch:.0f}{bound}."


def before_after_section(results: Mapping[str, Any]) -> str:
    """Return the table of `results.json`'s content as HTML with a heading, "" where nothing was measured."""
    if not (content := table.html_table(results)):
        return ""
    return f'<h2>Before and after</h2>\n<div class="scroll">{content}</div>\n{note(table.footnote(results))}'


def _grids(folder: Path) -> str:
    pair = [(name, folder / f"{name}.png") for name in ("before", "after") if (folder / f"{name}.png").is_file()]
    numbered = {int(m[1]): p for p in folder.glob("epoch-*.png") if (m := re.fullmatch(r"epoch-(\d+)\.png", p.name))}
    epochs = sorted(numbered)
    shown = _spread(epochs, MAX_GRIDS)
    legend = "Same seeds throughout. Solid red: violates the constraint. Dashed yellow: invalid."
    parts = ["<h2>Samples</h2>", note(legend if pair or epochs else "No sample grids were drawn.")]
    parts += ['<div class="pair">', *(picture(name, path) for name, path in pair), "</div>"] if pair else []
    parts += ["<h2>Samples through the fit</h2>"] if epochs else []
    if len(shown) < len(epochs):
        parts.append(note(f"{len(shown)} of {len(epochs)} epochs; all of them are in the run's folder grids."))
    parts += ['<div class="pair">', *(picture(f"epoch {e}", numbered[e]) for e in shown), "</div>"] if epochs else []
    return "\n".join(parts)


def _plots(results: Mapping[str, Any], fit: Mapping[str, Any], metrics: Metrics) -> str:
    figures, missing = [], []
    for name, draw in _drawings(results, fit, metrics):
        try:
            svg = draw()
        except ImportError as error:  # the report is worth having without its plots
            return f"<h2>Course of the fit</h2>\n{note(f'Plots left out: {error}')}"
        if svg is None:
            missing.append(name)
        else:
            figures.append(f"<figure><figcaption>{escape(name)}</figcaption>{svg.decode()}</figure>")
    missed = note(f"Nothing measured, so not drawn: {', '.join(missing)}." if missing else "")
    return "\n".join(["<h2>Course of the fit</h2>", '<div class="pair">', *figures, "</div>", missed])


def _drawings(results: Mapping[str, Any], fit: Mapping[str, Any], metrics: Metrics) -> Iterable[Drawing]:
    """Yield each plot's name and what draws it; None where its numbers are missing."""
    allowed, told, curves = table.number(fit.get("max_violation_rate")), results or fit, partial(_curves, metrics)
    figures, word = table.figures(told), table.subject(told)
    for each in figures:
        if each.kind == "histogram":
            yield each.label, partial(_histogram, results, each)
        if each.kind == "distribution":
            yield each.label, partial(_distribution, results, each)
    distance = next((each for each in figures if each.headline and each.kind == "number"), None)
    name = f"{distance.label} and {word}" if distance else word
    yield f"validation, by the judge: {name}", lambda: _trend(metrics, "violation", word, distance)
    yield "validation, by own g", lambda: _trend(metrics, "own_violation", "g above its tolerance", limit=allowed)
    yield "penalty P, raw, in units of g squared", lambda: curves("penalty/", "P", log=True, levels=_taus(fit))
    yield "penalty coefficient C", lambda: curves("penalty_coefficient/", "C", steps=True)
    yield "training loss", lambda: curves("loss/", "loss", smooth=True)
    yield "held-out diffusion loss", lambda: curves("val/diffusion_loss", "loss")
    yield "violations in training batches", lambda: curves("violation_rate/", "share of rows", smooth=True)


def _taus(fit: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the levels tau above 0 below which penalties stop, each once, as the fit has recorded them."""
    recorded = fit.get("stop_below")
    values = map(table.number, recorded.values()) if isinstance(recorded, dict) else ()
    return [(f"tau = {value:.4g}", value) for value in sorted({value for value in values if value})]


def _curves(metrics: Metrics, prefix: str, y_label: str, **options: Any) -> bytes | None:
    """Draw the columns that begin with `prefix`, named by what follows it."""
    names = sorted(name for name in metrics if name.startswith(prefix))
    lines = [_line(name.removeprefix(prefix) or name, metrics[name]) for name in names]
    return plots.curves(lines, y_label, **options) if lines else None


def _trend(
    metrics: Metrics, key: str, word: str, distance: Figure | None = None, limit: float | None = None
) -> bytes | None:
    columns = [metrics.get(f"val/{name}", []) for name in (f"{key}_rate", f"{key}_upper_95")]
    columns.insert(0, metrics.get(f"val/{distance.key}", []) if distance else [])
    if not columns[0] and not columns[1]:
        return None
    by_epoch = all(len({point.epoch for point in column}) == len(column) for column in columns)
    names = zip((distance.label if distance else "", word, "upper"), columns, strict=True)
    above, rate, upper = (_line(name, column, by_epoch) if column else None for name, column in names)
    return plots.trend(above, rate, upper, "epoch" if by_epoch else "optimiser steps", limit)


def _line(name: str, points: Sequence[Point], by_epoch: bool = False) -> plots.Line:
    return plots.Line(name, [p.epoch if by_epoch else p.step for p in points], [p.value for p in points])


def _histogram(results: Mapping[str, Any], shown: Figure) -> bytes | None:
    before, after = (table.histogram(results, side, shown.key) for side in ("before", "after"))
    sizes = {len(side) for side in (before, after) if side}
    if len(sizes) != 1:
        return None
    return plots.class_histogram(before, after, shown.marked if shown.marked in range(*sizes) else None)


def _distribution(results: Mapping[str, Any], shown: Figure) -> bytes | None:
    lines = []
    for side in ("before", "after"):
        told = _measured(results, side).get(shown.key)
        x, shares = (told.get("x"), told.get("share")) if isinstance(told, dict) else (None, None)
        if isinstance(x, list) and isinstance(shares, list) and len(x) == len(shares) > 0:
            points = [(table.number(a), table.number(b)) for a, b in zip(x, shares, strict=True)]
            known = [(a, 100 * b) for a, b in points if a is not None and b is not None]
            lines.append(plots.Line(side, [a for a, _ in known], [b for _, b in known]))
    return plots.curves(lines, "share of samples (%)", shown.label) if lines else None


def _measured(results: Mapping[str, Any], side: str) -> dict[str, Any]:
    part = results.get(side)
    metrics = part.get("metrics") if isinstance(part, dict) else None
    return metrics if isinstance(metrics, dict) else {}


def _settings(results: Mapping[str, Any], config: str) -> str:
    keys = ("config", "sampler", "seeds", "seconds", "versions", "weights_sha256")
    pairs = [(key.replace("_", " "), _words(key, results[key])) for key in keys if results.get(key)]
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(words)}</dd>\n" for key, words in pairs)
    facts = f"<dl>\n{items}</dl>" if items else note("Versions, seeds and hashes appear here after the test.")
    details = f"<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>"
    return f"<h2>Settings</h2>\n{facts}\n{details if config else note('There is no config.yaml.')}"


def _words(key: str, value: Any) -> str:
    if key == "seeds" and isinstance(value, list):
        return " to ".join(f"{seed:,}" if isinstance(seed, int) else str(seed) for seed in value)
    if isinstance(value, dict):
        unit = " s" if key == "seconds" else ""
        known = [(name, item) for name, item in value.items() if item is not None]
        return ", ".join(f"{k} {round(v, 1) if isinstance(v, float) else v}{unit}" for k, v in known)
    return str(value)


def _spread(items: Sequence[int], count: int) -> list[int]:
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _float(text: Any) -> float | None:
    try:
        return table.number(float(text))
    except (TypeError, ValueError):
        return None
