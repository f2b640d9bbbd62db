"""Before and after in words: the table and the one-sentence verdict, as pure functions of `results.json`'s content.

Percentages have one decimal from 1 % on and two below, and an upper bound is rounded up, so that what is printed never
promises more than what was measured. A figure that is missing or is no finite number shows as "-".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from typing import Any, NamedTuple

_DIGITS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_KNOWN = {"total_variation", "total_variation_noise_floor", "non_digit_rate", "fid", "kid"}


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


def histogram(results: Mapping[str, Any], side: str) -> list[float]:
    """Return the class histogram of "before" or "after", [] where there is none of numbers alone."""
    counts = _dict(_dict(results, side), "metrics").get("class_histogram")
    values = [number(count) for count in counts] if isinstance(counts, list) else []
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def label_word(results: Mapping[str, Any]) -> str:
    """Return what the removed class is called: "fours" for 4 of ten digits, "class 12" else, "violations" without."""
    label = results.get("label")
    if not isinstance(label, int) or isinstance(label, bool):
        return "violations"
    digits = _classes(results) in (0, len(_DIGITS)) and 0 <= label < len(_DIGITS)
    return _DIGITS[label] if digits else f"class {label}"


def rows(results: Mapping[str, Any]) -> list[Row]:
    """Return the lines of the table, in order; a line that neither side measured is left out.

    Metrics that have no line of their own follow by their names, shares (`..._rate`) in percent.
    """
    before, after = (_dict(results, side) for side in ("before", "after"))
    extra = sorted({*_dict(before, "metrics"), *_dict(after, "metrics")} - _KNOWN)
    named: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        (f"{label_word(results)} (upper 95 % bound)", partial(_bounded, key="violation")),
        ("own g above its tolerance (upper 95 % bound)", partial(_bounded, key="own_violation")),
        (f"total variation of {_others(results)} (noise floor)", _total_variation),
        ("non-digits", partial(_metric, key="non_digit_rate")),
        ("FID", partial(_metric, key="fid")),
        ("KID", partial(_metric, key="kid")),
        *((key.replace("_", " "), partial(_metric, key=key)) for key in extra),
    ]
    lines = [Row(name, cell(before), cell(after)) for name, cell in named]
    return [line for line in lines if (line.before, line.after) != ("-", "-")]


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
        results: what `results.json` holds: "before" and "after" as `Evaluation.compute()` gives them, and "label".
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
    """Return one sentence: the status, what happened to the forbidden class, and what it cost the rest.

    The other classes "kept their shares" where their total variation is at most 1.5 times its noise floor.
    """
    before, after = _dict(results, "before"), _dict(results, "after")
    key = "violation" if number(after.get("violation_rate")) is not None else "own_violation"
    rate, was = number(after.get(f"{key}_rate")), number(before.get(f"{key}_rate"))
    fitted = results.get("status") != "not fitted"
    parts = []
    if rate is not None:
        parts.append(f"{label_word(results)} {_change(was if fitted else None, rate, percent)}{_evidence(after, key)}")
    metrics = _dict(after, "metrics")
    if fitted and (total := number(metrics.get("total_variation"))) is not None:
        floor = number(metrics.get("total_variation_noise_floor"))
        parts.append(f"{_others(results)} {_kept(total, floor)}")
    sentence = "; ".join(parts)
    if (fid := number(metrics.get("fid"))) is not None:
        fid_was = number(_dict(before, "metrics").get("fid")) if fitted else None
        sentence += f"{', ' if sentence else ''}FID {_change(fid_was, fid, figure)}"
    return f"{results.get('status') or 'status unknown'}: {sentence or 'nothing was measured'}."


def _dict(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _classes(results: Mapping[str, Any]) -> int:
    return len(histogram(results, "after") or histogram(results, "before"))


def _bounded(side: Mapping[str, Any], key: str) -> str:
    rate, upper = percent(side.get(f"{key}_rate")), percent(side.get(f"{key}_upper_95"), up=True)
    return rate if upper == "-" else f"{rate} ({upper})"


def _metric(side: Mapping[str, Any], key: str) -> str:
    metrics = _dict(side, "metrics")
    text = (percent if key.endswith("_rate") else figure)(metrics.get(key))
    interval = metrics.get(f"{key}_95")  # of a share
    if text == "-" or not isinstance(interval, list) or len(interval) != 2:
        return text
    return f"{text} ({percent(interval[0])} to {percent(interval[1], up=True)})"


def _total_variation(side: Mapping[str, Any]) -> str:
    total, floor = (number(_dict(side, "metrics").get(f"total_variation{end}")) for end in ("", "_noise_floor"))
    if total is None:
        return "-"
    text = f"{total:.3f}" if total else "0"
    return f"{text} ({floor:.3f})" if floor else text


def _others(results: Mapping[str, Any]) -> str:
    count = _classes(results)
    if not isinstance(results.get("label"), int) or not count:
        return "the other classes" if results.get("label") is not None else "the classes"
    return f"the other {_COUNTS[count - 1]}" if count <= len(_COUNTS) else f"the other {count - 1:,} classes"


def _change(was: float | None, now: float, write: Callable[[object], str]) -> str:
    if was is None:
        return f"at {write(now)}"
    if write(was) == write(now):
        return f"stayed at {write(now)}"
    return f"{'fell' if now < was else 'rose'} from {write(was)} to {write(now)}"


def _evidence(side: Mapping[str, Any], key: str) -> str:
    upper, count = number(side.get(f"{key}_upper_95")), number(side.get("n"))
    facts = [] if upper is None else [f"upper 95 % bound {percent(upper, up=True)}"]
    facts += [] if count is None else [f"n = {count:,.0f}"]
    return f" ({', '.join(facts)})" if facts else ""


def _kept(total: float, floor: float | None) -> str:
    if floor is None:
        return f"moved by a total variation of {total:.2f}"
    word = "kept their shares" if total <= 1.5 * floor else "changed their shares"
    return f"{word} (total variation {total:.2f}, noise floor {floor:.2f})"
