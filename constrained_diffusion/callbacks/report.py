"""`report.html`: a run folder as one page that needs nothing but itself.

`write_report` is a pure function of the run folder. It shows what lies there and says in a short note what does not.
All text that comes from files is escaped: configs and names are not trusted.
"""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from constrained_diffusion.callbacks import plots, table

MAX_GRIDS = 24  # a longer fit shows so many of its epochs, evenly spread
_STATUSES = ("feasible", "infeasible", "diverged")
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root{color-scheme:light dark;--page:#fff;--ink:#1d2126;--soft:#59616d;--line:#d9dde3;--card:#f6f7f9;--good:#1c7f4b;
--bad:#c03427}
@media(prefers-color-scheme:dark){:root{--page:#14171b;--ink:#e6e8eb;--soft:#9aa3af;--line:#323841;--card:#1c2026;
--good:#4cc38a;--bad:#ff7a6b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:1.5rem 1rem 4rem;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:0;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2.5rem 0 .75rem}
.verdict{margin:1.25rem 0;padding:.8rem 1rem;background:var(--card);border-left:4px solid var(--soft)}
.feasible{border-color:var(--good)}.infeasible,.diverged{border-color:var(--bad)}
.note,figcaption{color:var(--soft);font-size:.9rem;overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.4rem 0 .4rem 1.25rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
thead th{color:var(--soft);font-weight:500}tbody th{font-weight:400;text-align:left;padding-left:0}
td:last-child{font-weight:600}
.pair{display:grid;gap:1.5rem 2rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,29rem),1fr))}
figure{margin:0}figcaption{margin-bottom:.3rem}img,svg{display:block;width:100%;height:auto;border-radius:3px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.25rem;margin:0 0 1rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}summary{cursor:pointer}
pre{overflow-x:auto;padding:1rem;background:var(--card);font-size:.85rem;line-height:1.45}
@media(max-width:34rem){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}th,td{padding-left:.8rem}}
</style>
</head>
<body>
"""


class Point(NamedTuple):
    """One logged value."""

    step: float
    epoch: float
    value: float


Metrics = dict[str, list[Point]]
Drawing = tuple[str, Callable[[], bytes | None]]


def write_report(run: Path) -> Path:
    """Write `report.html` from what lies in the run folder, and return its path.

    Reads `config.yaml`, `metrics.csv`, `grids/*.png`, `results.json` and `status.json`, those that exist. The same
    files give the same page, byte for byte.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a JSON file there is no JSON object, for instance because it is truncated.
    """
    run = Path(run).resolve()
    if not run.is_dir():
        raise FileNotFoundError(f"write_report expects a run folder, but '{run}' is none; give the folder of a fit.")
    results, fit = read_json(run / "results.json"), read_json(run / "status.json")
    metrics = read_metrics(run / "metrics.csv")
    config = (run / "config.yaml").read_text("utf-8", "replace") if (run / "config.yaml").is_file() else ""
    title = f"{run.parent.name} / {run.name}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        _verdict(results, fit, metrics),
        _table(results),
        _grids(run / "grids"),
        _plots(results, metrics, config),
        _settings(results, config),
    ]
    page = _HEAD.replace("TITLE", escape(title)) + "\n".join(sections) + "\n</body>\n</html>\n"
    target, draft = run / "report.html", run / "report.html.part"
    draft.write_text(page, encoding="utf-8", errors="replace")
    return draft.replace(target)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file, {} where there is no file.

    Raises:
        ValueError: the file holds no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content, problem = json.loads(path.read_text("utf-8", "replace")), "other JSON"
    except json.JSONDecodeError as error:
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
        for index, row in enumerate(csv.DictReader(file)):
            step, epoch = _float(row.get("step")), _float(row.get("epoch"))
            for name, text in row.items():
                value = _float(text)
                if name and name not in ("step", "epoch") and value is not None:
                    columns.setdefault(name, []).append(Point(index if step is None else step, epoch or 0.0, value))
    return {name: sorted(points, key=lambda point: point.step) for name, points in columns.items()}


class Report(Callback):
    """Writes the run's `report.html` when a fit and when a test ends, and prints where it lies.

    The run is `trainer.default_root_dir`. Place it after what writes grids and `results.json`.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            print(f"report: {write_report(Path(trainer.default_root_dir))}")


def _verdict(results: Mapping[str, Any], fit: Mapping[str, Any], metrics: Metrics) -> str:
    status, cost = results.get("status", fit.get("status")), results.get("cost") or fit.get("cost")
    text = table.verdict(results) if results else f"{status or 'fitted'}, not tested yet: no results.json."
    key = "val/violation" if "val/violation_rate" in metrics else "val/own_violation"
    if not results and (rates := metrics.get(f"{key}_rate")):
        text += f" The last validation (epoch {rates[-1].epoch:.0f}) found {table.percent(rates[-1].value)} violations"
        upper = metrics.get(f"{key}_upper_95")
        text += f" (upper 95 % bound {table.percent(upper[-1].value, up=True)})." if upper else "."
    kind = status if status in _STATUSES else "plain"
    return f'<p class="verdict {kind}">{escape(text)}</p>\n{_note(f"Cost: {cost}" if cost else "")}'


def _table(results: Mapping[str, Any]) -> str:
    if not (content := table.html_table(results)):
        return ""
    return f'<h2>Before and after</h2>\n<div class="scroll">{content}</div>\n{_note(table.footnote(results))}'


def _grids(folder: Path) -> str:
    pair = [(name, folder / f"{name}.png") for name in ("before", "after") if (folder / f"{name}.png").is_file()]
    numbered = {int(m[1]): p for p in folder.glob("epoch-*.png") if (m := re.fullmatch(r"epoch-(\d+)\.png", p.name))}
    epochs = sorted(numbered)
    shown = _spread(epochs, MAX_GRIDS)
    legend = "Same seeds throughout. Solid red: violates the constraint. Dashed yellow: invalid."
    parts = ["<h2>Samples</h2>", _note(legend if pair or epochs else "No sample grids were drawn.")]
    parts += ['<div class="pair">', *(_picture(name, path) for name, path in pair), "</div>"] if pair else []
    parts += ["<h2>Samples through the fit</h2>"] if epochs else []
    if len(shown) < len(epochs):
        parts.append(_note(f"{len(shown)} of {len(epochs)} epochs; all of them lie in the run's folder grids."))
    parts += ['<div class="pair">', *(_picture(f"epoch {e}", numbered[e]) for e in shown), "</div>"] if epochs else []
    return "\n".join(parts)


def _picture(name: str, path: Path) -> str:
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _note(f"{name}: {path.name} is no PNG file.")
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<figure><figcaption>{escape(name)}</figcaption><img alt="samples, {escape(name)}" src="{source}"></figure>'


def _plots(results: Mapping[str, Any], metrics: Metrics, config: str) -> str:
    figures, missing = [], []
    for name, draw in _drawings(results, metrics, config):
        try:
            svg = draw()
        except ImportError as error:  # the report is worth having without its plots
            return f"<h2>Course of the fit</h2>\n{_note(f'Plots left out: {error}')}"
        if svg is None:
            missing.append(name)
        else:
            figures.append(f"<figure><figcaption>{escape(name)}</figcaption>{svg.decode()}</figure>")
    note = _note(f"Nothing measured, so not drawn: {', '.join(missing)}." if missing else "")
    return "\n".join(["<h2>Course of the fit</h2>", '<div class="pair">', *figures, "</div>", note])


def _drawings(results: Mapping[str, Any], metrics: Metrics, config: str) -> Iterable[Drawing]:
    """Yield each plot's name and what draws it; None where its numbers are missing."""
    tau = [(f"tau = {value:g}", value) for value in _from_config(config, "stop_below")]
    allowed = [*_from_config(config, "max_violation_rate"), None][0]
    word, curves = table.label_word(results), partial(_curves, metrics)
    yield "class shares", lambda: _histogram(results)
    yield "validation: FID and violations", lambda: _trend(metrics, "violation", word, fid=True)
    yield "validation: the constraint's own g", lambda: _trend(metrics, "own_violation", "g violated", limit=allowed)
    yield "penalty P, raw, in units of g squared", lambda: curves("penalty/", "P", log=True, levels=tau)
    yield "penalty coefficient C", lambda: curves("penalty_coefficient/", "C", steps=True)
    yield "training loss", lambda: curves("loss/", "mean squared error", smooth=True)
    yield "held-out diffusion loss", lambda: curves("val/diffusion_loss", "mean squared error")
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


def _settings(results: Mapping[str, Any], config: str) -> str:
    keys = ("config", "sampler", "seeds", "seconds", "versions", "weights_sha256")
    pairs = [(key.replace("_", " "), _words(key, results[key])) for key in keys if results.get(key)]
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(words)}</dd>\n" for key, words in pairs)
    facts = f"<dl>\n{items}</dl>" if items else _note("Versions, seeds and hashes appear here after the test.")
    details = f"<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>"
    return f"<h2>Settings</h2>\n{facts}\n{details if config else _note('There is no config.yaml.')}"


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


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""
