"""The report's plots, drawn from plain numbers.

Every function returns the bytes of one picture. SVGs have a transparent ground, take their ink from `currentColor`, so
that they read on light and dark pages, keep their text as text, and are the same bytes for the same numbers.
Needs matplotlib, which is loaded when the first plot is drawn; nothing of pyplot's global state is touched.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from constrained_diffusion.runtime.distribution import needs_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["svg", "png"]
BLUE, RED, GREY = "#3f83c9", "#e0483a", "#8b919c"
COLOURS = (BLUE, "#c98a1b", "#8a70c4", "#3f9a83", GREY)
_INK = "#010203"  # stands for the page's text colour until the SVG is written
_WIDTH, _PANEL = 4.8, 2.5  # inches
_SMOOTH_FROM = 60  # from so many points on, a curve is shown as its moving average over the raw one


class Line(NamedTuple):
    """One curve: its name in the legend, and its points in order of x; NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def curves(
    lines: Sequence[Line],
    y_label: str,
    x_label: str = "optimiser steps",
    log: bool = False,
    steps: bool = False,
    smooth: bool = False,
    levels: Sequence[tuple[str, float]] = (),
    kind: Kind = "svg",
) -> bytes:
    """Draw curves over a common x.

    Args:
        lines: at least one.
        y_label: with its unit.
        x_label: likewise.
        log: logarithmic y; zeros then lie below the edge, and the label says so.
        steps: draw a value as constant until the next.
        smooth: show the moving average of a long curve, the raw one faint behind it.
        levels: horizontal lines with a name each, such as tau.
        kind: "svg" or "png".

    Raises:
        ValueError: no lines, or x and y of different lengths.
        ImportError: matplotlib is missing.
    """
    sheet, (axes,) = _panels([_PANEL], lines)
    for line, colour in zip(lines, _cycle(len(lines)), strict=True):
        style: dict[str, Any] = {"color": colour, "drawstyle": "steps-post" if steps else "default"}
        rough = smooth and len(line.y) >= _SMOOTH_FROM
        axes.plot(line.x, line.y, linewidth=0.7 if rough else 1.4, alpha=0.35 if rough else 1.0,
                  label="_raw" if rough else _plain(line.name), **_dots(line), **style)  # fmt: skip
        if rough:
            axes.plot(line.x, _moving_average(line.y), linewidth=1.6, label=_plain(line.name), **style)
    for index, (name, level) in enumerate(levels):
        axes.axhline(level, color=_INK, linewidth=0.9, linestyle=("--", ":", "-.")[index % 3], label=_plain(name))
    if log:
        positive = [y for line in lines for y in line.y if math.isfinite(y) and y > 0]
        positive += [level for _, level in levels if level > 0]
        if positive:
            axes.set_yscale("log", nonpositive="clip")
            axes.set_ylim(min(positive) / 1.6, max(positive) * 1.6)
        if positive and any(y <= 0 for line in lines for y in line.y):
            y_label += "; 0 is below the edge"
    return _finish(sheet, [(axes, y_label)], x_label, kind)


def trend(
    distance: Line | None,
    rate: Line | None,
    upper: Line | None = None,
    x_label: str = "epoch",
    limit: float | None = None,
    kind: Kind = "svg",
) -> bytes:
    """Draw a figure above the share of violating samples, over a common x (the penalty paper's Figure 5).

    Args:
        distance: any number, such as the Frechet distance; None leaves its panel out.
        rate: shares in [0, 1]; shown in percent; the name is the panel's label.
        upper: the upper 95 % bounds of `rate`, at the same x.
        x_label: what x counts.
        limit: the share that is allowed, drawn as a level.
        kind: "svg" or "png".

    Raises:
        ValueError: neither distance nor rate, or x and y of different lengths.
        ImportError: matplotlib is missing.
    """
    given = [line for line in (distance, rate) if line is not None]
    heights = [1.4, 1.4] if len(given) > 1 else [_PANEL] * len(given)
    sheet, panels = _panels(heights, [*given, *([upper] if upper else [])])
    labels = []
    for axes, line in zip(panels, given, strict=True):
        if line is distance:
            axes.plot(line.x, line.y, color=BLUE, linewidth=1.4, marker="o", markersize=3)
            labels.append((axes, line.name))
            continue
        shares = [100 * y for y in line.y]
        axes.plot(line.x, shares, color=RED, linewidth=1.4, marker="o", markersize=3, label="measured")
        if upper is not None:
            bounds = [100 * y for y in upper.y]
            axes.plot(upper.x, bounds, color=RED, linewidth=1.1, linestyle=":", label="upper 95 % bound")
            if list(upper.x) == list(line.x):
                axes.fill_between(list(line.x), shares, bounds, color=RED, alpha=0.14, linewidth=0)
        if limit is not None:
            axes.axhline(100 * limit, color=_INK, linewidth=0.9, linestyle="--", label=f"allowed: {100 * limit:g} %")
        axes.set_ylim(bottom=0)
        labels.append((axes, f"{line.name} (%)"))
    panels[-1].locator_params(axis="x", integer=True)
    return _finish(sheet, labels, x_label, kind)


def class_histogram(
    before: Sequence[float], after: Sequence[float], removed: int | None = None, kind: Kind = "svg"
) -> bytes:
    """Draw the share of each class before and after as bars, the removed class marked.

    Args:
        before: counts or shares per class, divided by their sum; may be empty.
        after: likewise.
        removed: index of the class that the fine-tuning forbids.
        kind: "svg" or "png".

    Raises:
        ValueError: both empty, of different lengths, or `removed` is no class.
        ImportError: matplotlib is missing.
    """
    sides = [(name, side, c) for name, side, c in (("before", before, GREY), ("after", after, BLUE)) if len(side)]
    sizes = {len(side) for _, side, _ in sides}
    if len(sizes) != 1:
        raise ValueError(f"expected histograms of one length, got {len(before)} and {len(after)} classes.")
    count = sizes.pop()
    if removed is not None and not 0 <= removed < count:
        raise ValueError(f"removed must be a class from 0 to {count - 1}, got {removed}.")
    sheet, (axes,) = _panels([_PANEL], [Line(name, range(count), side) for name, side, _ in sides])
    width = 0.8 / len(sides)
    for place, (name, side, colour) in enumerate(sides):
        whole = sum(side) or 1.0
        left = [index - 0.4 + (place + 0.5) * width for index in range(count)]
        axes.bar(left, [100 * value / whole for value in side], width=width * 0.94, color=colour, label=name)
    every = math.ceil(count / 20)
    axes.set_xticks(range(0, count, every))
    axes.tick_params(axis="x", length=0)
    if removed is not None:
        axes.axvspan(removed - 0.5, removed + 0.5, color=RED, alpha=0.18, linewidth=0, label="removed", zorder=0)
        for tick, text in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
            if tick == removed:
                text.set_fontweight("bold")
    axes.set_xlim(-0.6, count - 0.4)
    return _finish(sheet, [(axes, "share of samples (%)")], "class", kind)


def _panels(heights: Sequence[float], lines: Sequence[Line]) -> tuple[Figure, list[Axes]]:
    """Return an empty figure with one panel per height (inches) above the other, after checking `lines`."""
    if not lines or not heights:
        raise ValueError("expected at least one line to draw, got none.")
    for line in lines:
        if len(line.x) != len(line.y):
            raise ValueError(f"expected x and y of one length, got {len(line.x)} and {len(line.y)} for '{line.name}'.")
    with needs_extra("report", "plots need matplotlib"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    sheet = Figure(figsize=(_WIDTH, sum(heights) + 0.3), layout="constrained")
    FigureCanvasAgg(sheet)
    panels = sheet.subplots(len(heights), 1, sharex=True, squeeze=False)[:, 0]
    return sheet, list(panels)


def _finish(sheet: Figure, panels: Sequence[tuple[Axes, str]], x_label: str, kind: Kind) -> bytes:
    """Style every panel alike, write the labels and return the picture's bytes."""
    for axes, y_label in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=_INK, linewidth=0.7, alpha=0.5)
        axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=_INK, labelsize=8, width=0.6, length=2.5)
        axes.set_ylabel(_plain(y_label), fontsize=8.5, color=_INK)
        handles, _ = axes.get_legend_handles_labels()
        if len(handles) > 1:
            axes.legend(fontsize=8, frameon=False, labelcolor=_INK, loc="lower left", ncols=3, borderaxespad=0,
                        bbox_to_anchor=(0, 1.01), handlelength=1.6, columnspacing=1.2)  # fmt: skip
    panels[-1][0].set_xlabel(_plain(x_label), fontsize=8.5, color=_INK)
    return _render(sheet, kind)


def _render(sheet: Figure, kind: Kind) -> bytes:
    import matplotlib

    page = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "plots"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+")  # a name in a script that the font lacks
        if kind == "png":
            sheet.savefig(page, format="png", dpi=160, facecolor="white")
            return page.getvalue()
        unnamed = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        sheet.savefig(page, format="svg", transparent=True, metadata=unnamed)
    text = page.getvalue().decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # one page holds several plots; clip paths keep their hashed names
    text = text.replace("'DejaVu Sans'", "system-ui, sans-serif").replace(_INK, "currentColor")
    return re.sub(r"\n\s*", "\n", text).encode()


def _plain(text: str) -> str:
    """Keep matplotlib from reading a name as mathematics, or, from its first underscore, as hidden."""
    return text.lstrip("_").replace("$", r"\$")


def _dots(line: Line) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if len(line.x) <= 40 else {}


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _moving_average(values: Sequence[float]) -> list[float]:
    """Return the centred mean over about a twentieth of the curve, of as many points as there are at the ends."""
    half = max(1, len(values) // 40)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
