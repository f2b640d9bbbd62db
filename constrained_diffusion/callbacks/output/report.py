"""`report.html`: a run folder as one page that needs nothing but itself.

`write_report` is a pure function of the run folder. It shows what lies there and says in a short note what does not.
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

from lightning.pytorch import Callback, LightningModule, Trainer

from constrained_diffusion.callbacks.output.overlays import plans_section
from constrained_diffusion.reports import plots, table
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
    """Write `report.html` from what lies in the run folder, and return its path.

    Reads `config.yaml`, `metrics.csv`, `plans/*.png`, `grids/*.png`, `results.json` and `status.json`, those that
    exist. The same files give the same page, byte for byte.

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
        plans_section(folder.overlays),
        _grids(folder.grids),
        _plots(results, metrics, config),
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


class Report(Callback):
    """Writes the run's `report.html` when a fit and when a test ends, and prints where it lies.

    The run is `trainer.default_root_dir`. Place it after what writes grids and `results.json`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # what an earlier `test` wrote is read at the end: damage is told now
            read_json(RunFolder.of(trainer).results)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            print(f"report: {write_report(RunFolder.of(trainer).path)}")


def _verdict(results: Mapping[str, Any], fit: Mapping[str, Any], metrics: Metrics) -> str:
    status, cost = results.get("status", fit.get("status")), results.get("cost") or fit.get("cost")
    text = table.verdict(results) if results else f"{status or 'fitted'}, not tested yet: no results.json."
    key = "val/violation" if "val/violation_rate" in metrics else "val/own_violation"
    if not results and (rates := metrics.get(f"{key}_rate")):
        text += f" The last validation (epoch {rates[-1].epoch:.0f}) found {table.percent(rates[-1].value)} violations"
        upper = metrics.get(f"{key}_upper_95")
        text += f" (upper 95 % bound {table.percent(upper[-1].value, up=True)})." if upper else "."
    kind = status if status in _STATUSES else "plain"
    return f'<p class="verdict {kind}">{escape(text)}</p>\n{note(f"Cost: {cost}" if cost else "")}'


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
        parts.append(note(f"{len(shown)} of {len(epochs)} epochs; all of them lie in the run's folder grids."))
    parts += ['<div class="pair">', *(picture(f"epoch {e}", numbered[e]) for e in shown), "</div>"] if epochs else []
    return "\n".join(parts)


def _plots(results: Mapping[str, Any], metrics: Metrics, config: str) -> str:
    figures, missing = [], []
    for name, draw in _drawings(results, metrics, config):
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


def _drawings(results: Mapping[str, Any], metrics: Metrics, config: str) -> Iterable[Drawing]:
    """Yield each plot's name and what draws it; None where its numbers are missing."""
    tau = [(f"tau = {value:g}", value) for value in _from_config(config, "stop_below")]
    allowed = [*_from_config(config, "max_violation_rate"), None][0]
    word, curves = table.label_word(results), partial(_curves, metrics)
    yield "class shares", lambda: _histogram(results)
    for key in _distributions(results):
        yield key.replace("_", " "), partial(_distribution, results, key)
    yield "validation: FID and violations", lambda: _trend(metrics, "violation", word, fid=True)
    yield "validation: the constraint's own g", lambda: _trend(metrics, "own_violation", "g violated", limit=allowed)
    yield "penalty P, raw, in units of g squared", lambda: curves("penalty/", "P", log=True, levels=tau)
    yield "penalty coefficient C", lambda: curves("penalty_coefficient/", "C", steps=True)
    yield "training loss", lambda: curves("loss/", "loss", smooth=True)
    yield "held-out diffusion loss", lambda: curves("val/diffusion_loss", "loss")
    yield "violations in training batches", lambda: curves("violation_rate/", "share of rows", smooth=True)


def _curves(metrics: Metrics, prefix: str, y_label: str, **options: Any) -> bytes | None:
    """Draw the columns that begin with `prefix`, named by what follows it."""
    names = sorted(name for name in metrics if name.startswith(prefix))
    lines = [_line(name.removeprefix(prefix) or name, metrics[name]) for name in names]
    return plots.curves(lines, y_label, **options) if lines else None


def _trend(metrics: Metrics, key: str, word: str, fid: bool = False, limit: float | None = None) -> bytes | None:
    columns = [metrics.get(f"val/{name}", []) for name in ("fid", f"{key}_rate", f"{key}_upper_95")]
    if not fid:
        columns[0] = []
    if not columns[0] and not columns[1]:
        return None
    by_epoch = all(len({point.epoch for point in column}) == len(column) for column in columns)
    names = zip(("FID", word, "upper"), columns, strict=True)
    distance, rate, upper = (_line(name, column, by_epoch) if column else None for name, column in names)
    return plots.trend(distance, rate, upper, "epoch" if by_epoch else "optimiser steps", limit)


def _line(name: str, points: Sequence[Point], by_epoch: bool = False) -> plots.Line:
    return plots.Line(name, [p.epoch if by_epoch else p.step for p in points], [p.value for p in points])


def _histogram(results: Mapping[str, Any]) -> bytes | None:
    before, after = table.histogram(results, "before"), table.histogram(results, "after")
    label, sizes = results.get("label"), {len(side) for side in (before, after) if side}
    if len(sizes) != 1:
        return None
    return plots.class_histogram(before, after, label if label in range(*sizes) else None)


def _distributions(results: Mapping[str, Any]) -> list[str]:
    """Return the names of metrics that are distributions: `{"x": [..], "share": [..]}`."""
    names = {key for side in ("before", "after") for key in _measured(results, side)}
    return sorted(key for key in names if isinstance(key, str) and key.endswith("_distribution"))


def _distribution(results: Mapping[str, Any], key: str) -> bytes | None:
    lines = []
    for side in ("before", "after"):
        told = _measured(results, side).get(key)
        x, shares = (told.get("x"), told.get("share")) if isinstance(told, dict) else (None, None)
        if isinstance(x, list) and isinstance(shares, list) and len(x) == len(shares) > 0:
            points = [(table.number(a), table.number(b)) for a, b in zip(x, shares, strict=True)]
            known = [(a, 100 * b) for a, b in points if a is not None and b is not None]
            lines.append(plots.Line(side, [a for a, _ in known], [b for _, b in known]))
    name = key.removesuffix("_distribution").replace("_", " ")
    return plots.curves(lines, "share of samples (%)", name) if lines else None


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


def _from_config(config: str, key: str) -> list[float]:
    """Return the different numbers that the YAML text gives for `key`, wherever it stands."""
    found = [_float(text) for text in re.findall(rf"^[ -]*{key}:[ ]*(\S+)[ ]*$", config, flags=re.MULTILINE)]
    return sorted({value for value in found if value is not None})


def _spread(items: Sequence[int], count: int) -> list[int]:
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _float(text: Any) -> float | None:
    try:
        return table.number(float(text))
    except (TypeError, ValueError):
        return None
