"""One name for pip, in the code and in every text; what extras bring; what is said where one is missing."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from constrained_diffusion.runtime.distribution import DISTRIBUTION, install_hint, needs_extra

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BRACKETS = re.compile(r"""(?:constrained-diffusion|['"]\.)\[([a-z, -]+)\]""")  # `name[extras]`, `.[extras]`
COMMAND = re.compile(r"pip install[^\n`]*?([\w.-]*constrained[-_]diffusion[\w-]*)")


def texts() -> dict[str, str]:
    """The tracked texts, by their path."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {}
    for name in filter(None, names.split("\0")):
        file = ROOT / name
        if file.is_file() and not file.is_symlink() and file.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ""}:
            found[name] = file.read_text()
    return found


def test_pip_knows_the_project_by_the_name_in_the_code() -> None:
    assert PROJECT["name"] == DISTRIBUTION


def test_every_command_of_pip_names_our_distribution() -> None:
    commands = {(name, given) for name, text in texts().items() for given in COMMAND.findall(text)}
    assert ("docs/mazes.md", DISTRIBUTION) in commands, "the search finds what is there"
    assert not {(name, given) for name, given in commands if given != DISTRIBUTION}


def test_the_search_finds_another_spelling() -> None:
    for given in ("constrained-diffusion", "constrained_diffusion"):
        assert COMMAND.findall(f'pip install "{given}' + '[maze]"') == [given]


def test_the_code_spells_the_name_once() -> None:
    package = {name: text for name, text in texts().items() if name.startswith("constrained_diffusion/")}
    strings = {
        name
        for name, text in package.items()
        if name.endswith(".py")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and node.value == DISTRIBUTION
    }
    assert strings == {"constrained_diffusion/runtime/distribution.py"}


def test_every_extra_that_a_text_names_exists() -> None:
    named = {
        (name, extra.strip())
        for name, text in texts().items()
        if not name.startswith("tests/")
        for pattern in (BRACKETS, r"\bextra `([^`]+)`", r"\bneeds_extra\(\"([^\"]+)\"")
        for found in re.findall(pattern, text)
        for extra in found.split(",")
    }
    assert {extra for _, extra in named} >= set(EXTRAS), "the search finds what is there"
    assert not {(name, extra) for name, extra in named if extra not in EXTRAS}


def brought(extra: str) -> set[str]:
    """The distributions that an extra brings, by itself and by the extras of ours that it names."""
    found: set[str] = set()
    for requirement in EXTRAS[extra]:
        name, _, inner = re.match(r"([\w-]+)(\[([\w,-]+)\])?", requirement).groups()  # type: ignore[union-attr]
        found |= {other for e in inner.split(",") for other in brought(e)} if name == DISTRIBUTION else {name}
    return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_any_extra_is_for_leaves_a_report_with_plots(extra: str) -> None:
    assert "matplotlib" in brought(extra)


def test_dev_brings_all_other_extras() -> None:
    assert {name for extra in EXTRAS for name in brought(extra)} == brought("dev")


def test_the_readme_tells_what_each_extra_brings() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)) == set(EXTRAS)


def test_a_missing_extra_is_one_sentence_with_the_command() -> None:
    with pytest.raises(ImportError) as caught, needs_extra("lora", "LoRA needs peft", "train all weights"):
        import a_package_that_nobody_has  # noqa: F401
    assert str(caught.value) == f'LoRA needs peft: pip install "{DISTRIBUTION}[lora]", or train all weights'
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_what_is_installed_but_broken_tells_why() -> None:
    message = r"need MuJoCo \(libGL.so.1: no such file\): pip install"
    with pytest.raises(ImportError, match=message), needs_extra("maze", "mazes need MuJoCo"):
        raise ImportError("libGL.so.1: no such file")


def test_several_extras_in_one_command() -> None:
    assert install_hint("maze", "lora") == f'pip install "{DISTRIBUTION}[maze,lora]"'
