"""JSON and YAML that are damaged, or grow without end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from constrained_diffusion.cli import runs
from constrained_diffusion.runtime.untrusted import check_config, parse_json, read_json

CONFIGS = sorted(runs.shipped_configs().rglob("*.yaml"))


def laughs(levels: int, width: int) -> str:
    """A list of lists of .. of x, `width` ** `levels` of them in a few lines."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configs_pass(file: Path) -> None:
    check_config(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(9, 9), "more than 100,000 values or 64 levels, its aliases written out"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("a: &a {b: {c: *a}}", "more than 100,000 values"),
        ("a: " + "[" * 65 + "]" * 65, "or 64 levels"),
        ("a: " + "[" * 100_000, "or 64 levels"),
        ("a: [" + "x, " * 100_000 + "]", "more than 100,000 values"),
        ("a: *nothing", "more than 100,000 values|no valid YAML"),
        ("a: [2", "no valid YAML .*line 1"),
        ("a: \0", "no valid YAML"),
        ("", "holds no settings: expected keys such as model"),
        ("[1, 2]", "holds no settings"),
        ("just words", "holds no settings"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"the config '.*x.yaml' .*(?:{said})"):
        check_config(tmp_path / "x.yaml")
    assert time.monotonic() - started < 30  # a second, where nobody else is working


def test_aliases_count_as_often_as_they_stand_there(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(laughs(4, 10))  # 11,110 values in a3 alone, 1 + 10 + 1 + 11 * 10 ..
    check_config(file)
    file.write_text(laughs(5, 10))
    with pytest.raises(ValueError, match="more than"):
        check_config(file)
    file.write_text("a: &a {b: 1}\nc: *a\nd: [*a, *a]\n")
    check_config(file)


def test_a_config_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ValueError, match="x.yaml' is no UTF-8 text"):
        check_config(tmp_path / "x.yaml")


def test_json_objects(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": [1]}')
    assert read_json(file) == {"a": [1]}
    for content in (b"", b'{"a": [1', b"[" * 100_000, b"9" * 5000, b'{"a": "\xff"}', b'{"a": 1} {'):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x.json' is no valid JSON, perhaps (truncated|damaged)"):
            read_json(file)
    file.write_text("[1]")
    with pytest.raises(ValueError, match="should hold a JSON object, but holds other JSON"):
        read_json(file)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    assert parse_json("[1]", "x") == [1]
