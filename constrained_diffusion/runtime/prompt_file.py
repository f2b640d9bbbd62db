"""Prompt files: one JSON value per line, a string or an object with `prompt` and perhaps `seed` or `seeds`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

EXPECTED = 'a JSON string, or an object like {"prompt": "a white duck", "seeds": [0, 1]}'


class Row(NamedTuple):
    """One line: a prompt, the seeds that it is drawn with, and where it stands."""

    prompt: str
    seeds: list[int]
    place: str


def lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each value of the file stands, and the value."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no prompt file '{path}': expected a file with {EXPECTED} per line.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # `splitlines` would cut at U+2028 too
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file '{path}' is no UTF-8 text ({error}); save it as such.") from error
    for number, line in enumerate(lines, 1):
        place = f"{path}, line {number}"
        if line.strip():
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError) as error:
                said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise ValueError(f"{place}: expected {EXPECTED}, got {line.strip()[:80]!r} ({said}).") from error


def row(value: Any, place: str, shared: list[int]) -> Row:
    """Return what the JSON value at `place` says; `shared` are the seeds of a prompt without its own.

    Raises:
        ValueError: it is not a prompt, or its seeds are broken.
    """
    fields = value if isinstance(value, dict) else {"prompt": value}
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip() or {"seed", "seeds"} <= fields.keys():
        raise ValueError(f"{place}: expected {EXPECTED}, got {str(value)[:80]!r}.")
    if not prompt.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in prompt):  # no tokenizer takes it
        raise ValueError(f"{place}: the prompt {prompt[:80]!r} holds half of a letter, perhaps cut; write it again.")
    if "seed" in fields:
        return Row(prompt, as_seeds([fields["seed"]], place), place)
    return Row(prompt, as_seeds(fields["seeds"], place) if "seeds" in fields else shared, place)


def as_seeds(seeds: Any, place: str) -> list[int]:
    """Return `seeds`, a list of integers >= 0.

    Raises:
        ValueError: they are something else.
    """
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        got = str(seeds)[:80]
        raise ValueError(f"{place}: expected seeds as a list of integers >= 0, at least one, got {got}.")
    if max(seeds) >= 2**63:  # it names files too
        raise ValueError(f"{place}: expected seeds below 2^63, got one of {len(str(max(seeds)))} digits.")
    return seeds


def rows_of(prompts: list[str] | None, prompt_file: str | None, shared: list[int]) -> list[Row]:
    """Return the rows of given prompts, or of a prompt file in their place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: neither or both are given, there is no prompt, or a line is broken.
    """
    if (prompts is None) == (prompt_file is None):
        raise ValueError(
            f"expected either prompts or prompt_file, got {'neither' if prompts is None else 'both'}; give prompts "
            "as a list, or the path of a file with one JSON value per line."
        )
    if prompt_file is None:
        rows = [row(prompt, f"prompts[{i}]", shared) for i, prompt in enumerate(prompts or [])]
    else:
        rows = [row(value, place, shared) for place, value in lines(Path(prompt_file).expanduser())]
    if not rows:
        raise ValueError(f"there is no prompt in {prompt_file or 'prompts'}: expected at least one.")
    return rows
