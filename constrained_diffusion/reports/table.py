"""Before and after in words: the table and the verdict, as pure functions of `results.json`'s content.

Percentages have one decimal from 1 % on and two below, and an upper bound is rounded up, so that what is printed never
promises more than what was measured. A figure that is missing or is no finite number shows as "-".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from typing import Any, NamedTuple

from constrained_diffusion.evaluation import Figure


class Row(NamedTuple):
    """One line of the table."""

    name: str
    before: str
    after: str


def number(value: object) -> float | None:
    """Return `value` as a finite float, or None where it is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(share: object, up: bool = False) -> str:
    """Write a share in [0, 1] as a percentage, rounded up where `up` (for upper bounds).

    >>> percent(0.1018), percent(0.002), percent(0.001497, up=True), percent(0.0), percent(None)
    ('10.2 %', '0.2 %', '0.15 %', '0 %', '-')
    """
    value = number(share)
    if value is None:
        return "-"
    decimals = 1 if abs(value) >= 0.01 else 2
    scaled = 100 * value
    if up:
        scaled = math.ceil(round(scaled * 10**decimals, 6)) / 10**decimals
    text = f"{scaled:.{decimals}f}"
    if decimals == 2:
        text = text.rstrip("0").rstrip(".")
    return "< 0.01 %" if value > 0 and float(text) == 0 else f"{text} %"


def figure(value: object) -> str:
    """Write a plain number: two figures below 1, one decimal up to 100, whole beyond.

    >>> figure(7.9012), figure(0.03), figure(1234.5), figure(float("nan"))
    ('7.9', '0.03', '1,234', '-')
    """
    plain = number(value)
    if plain is None:
        return "-"
    if abs(plain) >= 1:
        return f"{plain:,.0f}" if abs(plain) >= 100 else f"{plain:.1f}"
    return f"{plain:.2g}"


def histogram(results: Mapping[str, Any], side: str, key: str) -> list[float]:
    """Return the histogram of that name "before" or "after", [] where there is none of numbers alone."""
    counts = _dict(_dict(results, side), "metrics").get(key)
    values = [number(count) for count in counts] if isinstance(counts, list) else []
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def figures(results: Mapping[str, Any]) -> list[Figure]:
    """Return the figures that the evaluation has declared, in its order; entries of another form are left out."""
    declared = results.get("figures")
    found = map(Figure.from_json, declared) if isinstance(declared, list) else ()
    return [each for each in found if each is not None]


def subject(results: Mapping[str, Any]) -> str:
    """Return what the evaluation calls the samples that it finds violating, such as "fours"."""
    named = results.get("subject")
    return named if isinstance(named, str) and named else "violations"


def rows(results: Mapping[str, Any]) -> list[Row]:
    """Return the lines of the table, in order; a line that neither side measured is left out.

    First each constraint by its own g, then what the judge finds, then the figures that the evaluation declares, and at
    last its other metrics by their names, shares (`..._rate`) in percent.
    """
    before, after = (_dict(results, side) for side in ("before", "after"))
    names = list({**_dict(before, "constraints"), **_dict(after, "constraints")})
    named: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        (f"{name}, by its own g (upper 95 % bound)", partial(_constraint, name=name)) for name in names
    ]
    if len(names) != 1:
        named.append(("any constraint, by its own g (upper 95 % bound)", partial(_bounded, key="own_violation")))
    named.append((f"{subject(results)}, by the judge (upper 95 % bound)", partial(_bounded, key="violation")))
    declared = figures(results)
    named += [(_name(each), partial(_metric, shown=each)) for each in declared]
    told = {name for each in declared for name in (each.key, *each.companions())}
    extra = sorted({*_dict(before, "metrics"), *_dict(after, "metrics")} - told)
    named += [(key.replace("_", " "), partial(_metric, shown=undeclared(key))) for key in extra]
    lines = [Row(name, cell(before), cell(after)) for name, cell in named]
    return [line for line in lines if (line.before, line.after) != ("-", "-")]


def undeclared(key: str) -> Figure:
    """Return how a metric that nobody declares is shown: by its name, a share (`..._rate`) in percent.

    >>> undeclared("path_length").label
    'path length'
    """
    return Figure(key, key.replace("_", " "), "rate" if key.endswith("_rate") else "number")


def written(shown: Figure, metrics: Mapping[str, Any]) -> str:
    """Write a figure as `metrics` holds it, with its interval or noise floor; "-" where it is none.

    >>> written(Figure("fid", "FID"), {"fid": 7.9012})
    '7.9'
    >>> written(Figure("tv", "total variation", "distance"), {"tv": 0.0312, "tv_noise_floor": 0.034})
    '0.031 (0.034)'
    """
    value = number(metrics.get(shown.key))
    if value is None:
        return "-"
    if shown.kind == "rate":
        interval = metrics.get(f"{shown.key}_95")
        if not isinstance(interval, list) or len(interval) != 2:
            return percent(value)
        return f"{percent(value)} ({percent(interval[0])} to {percent(interval[1], up=True)})"
    if shown.kind == "distance":
        floor = number(metrics.get(f"{shown.key}_noise_floor"))
        return (f"{value:.3f}" if value else "0") + (f" ({floor:.3f})" if floor else "")
    return f"{value:,.0f}" if shown.kind == "count" else figure(value)


def footnote(results: Mapping[str, Any]) -> str:
    """Say how many samples stand behind the table, "" where that is unknown."""
    before, after = (number(_dict(results, side).get("n")) for side in ("before", "after"))
    if before is None or after is None or before == after:
        count = after if after is not None else before
        return "" if count is None else f"n = {count:,.0f} samples" + (" each" if before == after else "")
    return f"n = {before:,.0f} samples before, {after:,.0f} after"


def before_after_table(results: Mapping[str, Any]) -> str:
    """Return the table as plain text in ASCII, columns aligned, for a terminal.

    Args:
        results: what `results.json` holds: "before" and "after" as `Evaluation.compute()` gives them, and `declared`.
    """
    lines = [Row("", "before", "after"), *rows(results)]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    text = [f"{a:<{widths[0]}}   {b:>{widths[1]}}   {c:>{widths[2]}}".rstrip() for a, b, c in lines]
    text.insert(1, "-" * (sum(widths) + 6))
    return "\n".join([*text, footnote(results)]).rstrip()


def html_table(results: Mapping[str, Any]) -> str:
    """Return the same table as an escaped HTML `<table>`, "" where nothing was measured."""
    cells = [[escape(cell).replace(" %", "&nbsp;%") for cell in row] for row in rows(results)]
    body = "\n".join(f'<tr><th scope="row">{a}</th><td>{b}</td><td>{c}</td></tr>' for a, b, c in cells)
    head = '<thead><tr><td></td><th scope="col">before</th><th scope="col">after</th></tr></thead>'
    return f"<table>{head}\n<tbody>\n{body}\n</tbody></table>" if cells else ""


def verdict(results: Mapping[str, Any]) -> str:
    """Return the status in two labelled lines: what the constraints' own g says, and what the judge found.

    The status comes from the first alone. A line of which nothing was measured is left out.
    """
    before, after = _dict(results, "before"), _dict(results, "after")
    if results.get("status") == "not fitted":  # then there is nothing to compare with
        before = {}
    was, now = _dict(before, "constraints"), _dict(after, "constraints")
    own = [_found(name, _dict(was, name), _dict(now, name)) for name in now]
    judged = [_found(subject(results), before, after)]
    judged += [_moved(each, _dict(before, "metrics"), _dict(after, "metrics")) for each in figures(results)]
    lines = [f"By own g: {'; '.join(told)}." for told in [list(filter(None, own))] if told]
    lines += [f"By the judge: {'; '.join(told)}." for told in [list(filter(None, judged))] if told]
    return "\n".join([f"{results.get('status') or 'status unknown'}.", *(lines or ["Nothing was measured."])])


def _found(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return how a violation rate moved, with its evidence, "" where it was not measured."""
    if (rate := number(after.get("violation_rate"))) is None:
        return ""
    return f"{name} {_change(number(before.get('violation_rate')), rate, percent)}{evidence(after)}"


def _moved(shown: Figure, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return how a headline figure moved, "" where it is none, or was not measured."""
    now = number(after.get(shown.key))
    if not shown.headline or now is None:
        return ""
    if shown.kind != "distance":
        write = percent if shown.kind == "rate" else figure
        return f"{shown.label} {_change(number(before.get(shown.key)), now, write)}"
    floor = number(after.get(f"{shown.key}_noise_floor"))
    return f"{shown.label} {now:.2f}" + ("" if floor is None else f" (noise floor {floor:.2f})")


def _dict(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _name(shown: Figure) -> str:
    floor = " (noise floor)" if shown.kind == "distance" else ""
    return shown.label + floor + (f", {shown.better} is better" if shown.better else "")


def _constraint(side: Mapping[str, Any], name: str) -> str:
    return _bounded(_dict(_dict(side, "constraints"), name), "violation")


def _bounded(side: Mapping[str, Any], key: str) -> str:
    rate, upper = percent(side.get(f"{key}_rate")), percent(side.get(f"{key}_upper_95"), up=True)
    return rate if upper == "-" else f"{rate} ({upper})"


def _metric(side: Mapping[str, Any], shown: Figure) -> str:
    return written(shown, _dict(side, "metrics"))


def _change(was: float | None, now: float, write: Callable[[object], str]) -> str:
    if was is None:
        return f"at {write(now)}"
    if write(was) == write(now):
        return f"stayed at {write(now)}"
    return f"{'fell' if now < was else 'rose'} from {write(was)} to {write(now)}"


def found(side: Mapping[str, Any]) -> str:
    """Return a violation rate with its evidence, "" where it was not measured.

    >>> found({"violation_rate": 0.002, "violation_upper_95": 0.0063, "n": 1200})
    '0.2 % (upper 95 % bound 0.63 %, n = 1,200)'
    """
    rate = number(side.get("violation_rate"))
    return "" if rate is None else f"{percent(rate)}{evidence(side)}"


def evidence(side: Mapping[str, Any]) -> str:
    """Return what stands behind a violation rate: its bound and n, in brackets.

    >>> evidence({"violation_upper_95": 0.0063, "n": 1200})
    ' (upper 95 % bound 0.63 %, n = 1,200)'
    """
    upper, count = number(side.get("violation_upper_95")), number(side.get("n"))
    facts = [] if upper is None else [f"upper 95 % bound {percent(upper, up=True)}"]
    facts += [] if count is None else [f"n = {count:,.0f}"]
    return f" ({', '.join(facts)})" if facts else ""
