"""JSON and YAML."""

from __future__ import annotations

import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

MOST_VALUES, DEEPEST = 100_000, 64  #: of a config; the largest that ship have about a hundred values, six deep


def parse_json(text: str, source: object) -> Any:
    """Return the JSON value in `text`; errors name `source`.

    Raises:
        ValueError: it is no JSON, perhaps truncated, or nested without end.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"'{source}' is no valid JSON, perhaps truncated ({error}); fetch or make it again."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no valid JSON, perhaps damaged ({error}); fetch or make it again.") from error
    content = parse_json(text, path)
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' should hold a JSON object, but holds other JSON; fetch or make it again.")
    return content


def restrict_configs() -> None:
    """Let configs name no class that executes, opens or deletes what its arguments say, as `subprocess.Popen` does.

    A config is still as good as a program: it may name any other class that is installed. From then on all YAML that
    jsonargparse reads is measured before it is loaded: configs, the files that they or options name, and values.
    """
    from jsonargparse import set_parsing_settings

    wanted: dict[str, Any] = {"import_path_denylist": [], "instantiate_subclass_spec_in_any": False}
    known = inspect.signature(set_parsing_settings).parameters  # which older versions do not all have
    set_parsing_settings(**{name: value for name, value in wanted.items() if name in known})
    _measure_all_yaml()


@cache
def _measure_all_yaml() -> None:
    import yaml
    from jsonargparse import get_loader, set_loader

    load = get_loader("yaml")

    def measured(text: str) -> Any:
        if "*" in text or len(text) > DEEPEST:  # others can be neither deep nor large
            _holds_settings(text, f"the YAML that begins with '{' '.join(text.split())[:40]}'")
        return load(text)

    set_loader("yaml", measured, (yaml.YAMLError,))


def check_config(path: Path) -> None:
    """Raise ValueError where a YAML config is no text, nested without end, or grows without end by its aliases.

    YAML's aliases stand for copies: ten of ten of ten .. of them make a file of a few lines endless. What else may be
    wrong with a config is told by whoever parses it; its tags are never followed.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the config '{path}' is no UTF-8 text ({error}); save it as such.") from error
    try:
        settings = _holds_settings(text, f"the config '{path}'")
    except yaml.YAMLError as error:
        said = " ".join(str(error).replace('"<unicode string>"', "the file").split())
        raise ValueError(f"the config '{path}' is no valid YAML ({said}); mend it there.") from error
    if not settings:
        raise ValueError(f"the config '{path}' holds no settings: expected keys such as model, data and trainer.")


def _holds_settings(text: str, name: str) -> bool:
    """Return whether YAML is a mapping, after measuring it without building it.

    Raises:
        ValueError: it is too deep or too large.
        yaml.YAMLError: it is no YAML.
    """
    import yaml

    sizes: dict[str, int] = {}  # of what an anchor names, its aliases expanded
    around: list[tuple[str | None, int]] = []  # the open collections: anchor, and the values before them
    values, settings = 0, False
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # C is 10 x faster
        if isinstance(event, yaml.AliasEvent):
            values += sizes.get(event.anchor, MOST_VALUES)  # unknown: it stands inside of what it names
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            settings = settings or (not around and isinstance(event, yaml.MappingStartEvent))
            around.append((event.anchor, values))
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = around.pop()
            if anchor:
                sizes[anchor] = values - before
        if values >= MOST_VALUES or len(around) > DEEPEST:
            raise ValueError(
                f"{name} has more than {MOST_VALUES:,} values or {DEEPEST} levels, its aliases written out: expected "
                "one run's settings; take out what repeats itself."
            )
    return settings
