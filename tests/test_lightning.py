"""What the package takes from Lightning and jsonargparse beyond their interfaces is what docs/lightning.md lists."""

from __future__ import annotations

import ast
import inspect
import operator
import pkgutil
import re
import tomllib
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import lightning
import lightning.pytorch.cli
import lightning.pytorch.strategies
import pytest
from lightning.pytorch import Trainer
from packaging.requirements import Requirement

import constrained_diffusion

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "constrained_diffusion"
TEXT = (ROOT / "docs" / "lightning.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CAPPED = {r.name: r for r in map(Requirement, PROJECT["dependencies"]) if r.name in ("lightning", "jsonargparse")}
PRIVATE = r"(_[a-z]\w*)"
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}
CHAIN = re.compile(r"\b(trainer\.(?:\w+_loop\b[\w.]*|strategy\.checkpoint_io))")


def listed(row: str) -> set[tuple[str, str]]:
    """Attribute and file of each row of the page whose first cell matches."""
    rows = re.findall(rf"^\| `({row})` \| (?:read|write) \| (.*?) \|", TEXT, re.MULTILINE)
    return {(attribute, file) for attribute, files in rows for file in re.findall(r"`([^`]+)`", files)}


def is_theirs(base: type) -> bool:
    return base.__module__.split(".")[0] in CAPPED


def kept_by(cls: type) -> set[str]:
    """The private names that the class's bases of Lightning or jsonargparse define, or keep in an object."""
    bases = [base for base in cls.__mro__ if is_theirs(base)]
    kept = {name for base in bases for name in re.findall(rf"\bself\.{PRIVATE}", inspect.getsource(base))}
    return kept | {name for base in bases for name in vars(base) if re.fullmatch(PRIVATE, name)} - {"_abc_impl"}


@cache
def known() -> set[str]:
    """Every private name that some class or module of theirs has."""
    found: set[str] = set()
    for name in CAPPED:
        for file in Path(import_module(name).__path__[0]).rglob("*.py"):
            found |= set(re.findall(rf"\b(?:self\.|cls\.|def ){PRIVATE}", file.read_text()))
    return found - NAMED_TUPLE


def reached(text: str) -> set[str]:
    """Private names of theirs that code asks other objects for, by a dot, by `getattr` and its like, or by import."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "super()"):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            found |= {argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in CAPPED:
            inner = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            found |= {name for name in inner if name.startswith("_")}
    return found & known()


def inherited(cls: type) -> set[str]:
    """Private names of its bases of theirs that a class of ours reads, writes or overrides."""
    mentioned = set(re.findall(rf"\b(?:self\.|cls\.|super\(\)\.|def ){PRIVATE}", inspect.getsource(cls)))
    return mentioned & kept_by(cls)


def modules() -> list[ModuleType]:
    names = [found.name for found in pkgutil.walk_packages(constrained_diffusion.__path__, "constrained_diffusion.")]
    return [import_module(name) for name in names if not name.endswith("__main__")]


def used() -> set[tuple[str, str]]:
    """Private name and file of all that the package takes."""
    found = set()
    for module in modules():
        file = Path(str(module.__file__))
        names = reached(file.read_text())
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                names |= inherited(cls)
        found |= {(name, file.relative_to(PACKAGE).as_posix()) for name in names}
    return found


def test_no_private_attribute_is_used_that_the_page_does_not_list() -> None:
    rows = {(attribute.partition(".")[2], file) for attribute, file in listed(rf"\w+\.{PRIVATE[1:-1]}")}
    assert rows
    assert used() == rows, "docs/lightning.md lists the private attributes of Lightning and the files that use them"


def test_no_undocumented_state_is_used_that_the_page_does_not_list() -> None:
    files = {file.relative_to(PACKAGE).as_posix(): file.read_text() for file in PACKAGE.rglob("*.py")}
    found = {(chain, file) for file, text in files.items() for chain in CHAIN.findall(text)}
    assert found == listed(r"trainer\.[\w.]+"), "docs/lightning.md lists it, and the files that use it"


@pytest.mark.parametrize("attribute", sorted({name for name, _ in listed(rf"\w+\.{PRIVATE[1:-1]}")}))
def test_each_private_attribute_is_still_there(attribute: str) -> None:
    owner, _, name = attribute.partition(".")
    homes = (lightning.pytorch, lightning.pytorch.cli, lightning.pytorch.loops, lightning.pytorch.strategies)
    (cls,) = {getattr(home, owner) for home in homes if hasattr(home, owner)}
    assert name in kept_by(cls), f"lightning {version('lightning')} has no {attribute}"


@pytest.mark.parametrize("chain", sorted({name for name, _ in listed(r"trainer\.[\w.]+")}))
def test_each_undocumented_attribute_is_still_there(chain: str) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    operator.attrgetter(chain.removeprefix("trainer."))(trainer)


def test_the_versions_are_capped_at_the_minor_version_that_was_read() -> None:
    read = dict(re.findall(r"\b(lightning|jsonargparse) (\d+\.\d+\.\d+)", TEXT))
    assert set(read) == set(CAPPED)
    for name, given in read.items():
        major, minor, _ = map(int, given.split("."))
        assert f"{name}=={given}\n" in (ROOT / "constraints.txt").read_text()
        assert given in CAPPED[name].specifier
        assert f"{major}.{minor}.999" in CAPPED[name].specifier
        assert f"{major}.{minor + 1}.0" not in CAPPED[name].specifier
        assert version(name) in CAPPED[name].specifier


def test_the_search_finds_all_ways_to_reach_in() -> None:
    assert reached("trainer._default_root_dir = a") == {"_default_root_dir"}
    assert reached("getattr(self.trainer, '_default_root_dir')") == {"_default_root_dir"}
    assert reached("from lightning.pytorch.cli import _get_short_description") == {"_get_short_description"}
    assert not reached("self._default_root_dir, a._replace(b=c), d._a_name_that_they_do_not_have")


class Overriding(Trainer):
    """Does what a class of ours shall not do unsaid."""

    def _run(self) -> None:
        self._default_root_dir = self._own = ""


def test_the_search_finds_what_classes_inherit() -> None:
    assert inherited(Overriding) == {"_run", "_default_root_dir"}
