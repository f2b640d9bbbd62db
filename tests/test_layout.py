"""The shape of the repository: links at the top, imports that run one way, light imports, no stray names in texts."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "constrained_diffusion"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# One row per folder, or file at the top: it imports from lower floors alone, and so no two import each other.
FLOORS = {
    "condition": 0,
    "batch": 1,
    "runtime": 2,
    "objectives": 3,
    "statistics": 3,
    "constraint_rates": 4,
    "evaluation": 5,
    "diffusion": 5,
    "denoisers": 6,
    "reports": 6,
    "noise_optimization": 7,
    "guides": 8,
    "fine_tuning": 9,
    "callbacks": 10,
    "domains.images": 11,
    "domains.mazes": 11,
    "domains.polymers": 11,
    "domains": 12,  # `load`, which imports them all
    "datamodules": 13,
    "cli": 14,
}
PURE = (
    "condition",
    "batch",
    "objectives",
    "statistics",
    "constraint_rates",
    "evaluation",
    "reports",
)  #: they need torch and torchmetrics at most
OPTIONAL = {  # what the extras install
    *("torchvision", "torch_fidelity", "matplotlib", "tensorboard", "peft", "transformers"),
    *("minari", "gymnasium", "gymnasium_robotics", "mujoco", "rdkit", "denoising_diffusion_pytorch"),
}
HEAVY = OPTIONAL | {"diffusers", "accelerate"}


def module_name(file: Path) -> str:
    """`zoo/__init__.py` is "zoo", `fine_tuning/module.py` is "fine_tuning.module", the package itself is ""."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in SOURCES}


def row(name: str) -> str:
    """The row of a module: the folder that it is in, whose name is the longest that fits."""
    known = [key for key in FLOORS if name == key or name.startswith(f"{key}.")]
    assert known, f"{name} is on no floor: add its folder to FLOORS in {Path(__file__).name}"
    return max(known, key=len)


def imports(node: ast.AST, deferred: bool = True) -> Iterator[str]:
    """Full names of all that is imported below `node`; without `deferred`, only what the import of the file loads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif deferred or not (
            isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
        ):
            yield from imports(child, deferred)


def own_imports(file: Path) -> set[str]:
    """Modules of ours that `file` imports, anywhere: inside functions and for type checkers too."""
    found = set()
    for name in imports(ast.parse(file.read_text())):
        if name.split(".")[0] == PACKAGE.name:
            inner = name.removeprefix(PACKAGE.name).removeprefix(".")
            found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


@pytest.mark.parametrize("link", ["callbacks", "datamodules"])
def test_links_at_the_top_point_into_the_package(link: str) -> None:
    assert os.readlink(ROOT / link) == f"constrained_diffusion/{link}"
    assert (ROOT / link).resolve() == PACKAGE / link
    assert (ROOT / link / "__init__.py").is_file()


def test_each_part_is_a_package() -> None:
    assert not [folder for file in SOURCES if not ((folder := file.parent) / "__init__.py").is_file()]


def test_types_are_announced() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_every_row_matches_something() -> None:
    assert {row(name) for name in MODULES if name} == set(FLOORS)


@pytest.mark.parametrize("name", [name for name in MODULES if name])  # the package's own face may show everything
def test_imports_run_downwards(name: str) -> None:
    own, others = row(name), {row(other) for other in own_imports(MODULES[name]) if other}
    upwards = {other for other in others - {own} if FLOORS[other] >= FLOORS[own]}
    assert not upwards, (
        f"{name} (floor {FLOORS[own]}) imports from {', '.join(sorted(upwards))}, which is no floor below"
    )


def test_only_what_is_above_the_domains_imports_them() -> None:
    users = {
        row(name) for name in MODULES if name for other in own_imports(MODULES[name]) if other.startswith("domains")
    }
    assert users <= {"domains", "domains.images", "domains.mazes", "domains.polymers", "datamodules", "cli"}


DOMAIN_WORDS = re.compile(r"digit|maze|planner|\bplans?\b|polymer|molecul|mnist|smiles", re.IGNORECASE)


@pytest.mark.parametrize("part", ["reports", "callbacks", "evaluation", "constraint_rates"])
def test_what_serves_all_domains_knows_the_words_of_none(part: str) -> None:
    files = [file for name, file in MODULES.items() if name == part or name.startswith(f"{part}.")]
    assert files
    assert not {
        f"{file.relative_to(PACKAGE)}: {found[0]}"
        for file in files
        for found in DOMAIN_WORDS.finditer(file.read_text())
    }


def import_table() -> str:
    """The table of docs/architecture.md: each folder, its floor, and the folders that it imports from."""
    found: dict[str, set[str]] = {key: set() for key in FLOORS}
    for name in MODULES:
        if name:
            found[row(name)] |= {row(other) for other in own_imports(MODULES[name]) if other} - {row(name)}
    lines = ["| folder | floor | imports from |", "|---|---|---|"]
    for key, floor in sorted(FLOORS.items(), key=lambda item: item[1]):
        below = ", ".join(f"`{other}`" for other in sorted(found[key], key=lambda other: (FLOORS[other], other)))
        lines.append(f"| `{key.replace('.', '/')}` | {floor} | {below or '-'} |")
    return "\n".join(lines)


def test_the_docs_show_the_import_graph_as_it_is() -> None:
    assert import_table() in (ROOT / "docs" / "architecture.md").read_text(), (
        f"replace the table in docs/architecture.md by what `python {Path(__file__).relative_to(ROOT)}` prints"
    )


def test_the_import_reader_sees_all_kinds() -> None:
    text = "import a.b\nif TYPE_CHECKING:\n  from c import d\ndef f():\n  from e.g import h as i\nclass K:\n  import l"
    assert list(imports(ast.parse(text))) == ["a.b", "c.d", "e.g.h", "l"]
    assert list(imports(ast.parse(text), deferred=False)) == ["a.b", "l"]


def roots(name: str) -> set[str]:
    """The top-level packages that importing the module asks for."""
    return {found.split(".")[0] for found in imports(ast.parse(MODULES[name].read_text()), deferred=False)}


def test_pure_folders_need_torch_alone() -> None:
    allowed = sys.stdlib_module_names | {"torch", "torchmetrics", PACKAGE.name}
    assert not {name: extra for name in MODULES if name and row(name) in PURE and (extra := roots(name) - allowed)}


def test_extras_are_imported_inside_the_functions_that_need_them() -> None:
    assert not {name: early for name in MODULES if (early := roots(name) & OPTIONAL)}


def loaded_by(statement: str) -> set[str]:
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_package_is_light() -> None:
    low = [name for name in MODULES if name and FLOORS[row(name)] <= FLOORS["diffusion"]]
    ground = ", ".join(f"constrained_diffusion.{name}" for name in low)
    before = {name.split(".")[0] for name in loaded_by("import torch, lightning")}
    after = {name.split(".")[0] for name in loaded_by(f"import torch, lightning, constrained_diffusion, {ground}")}
    assert "constrained_diffusion" in after
    assert not (after - before) & HEAVY


def test_no_file_is_too_long() -> None:
    lines = {file.relative_to(ROOT): len(file.read_text().splitlines()) for file in tracked() if file.suffix == ".py"}
    assert not {str(file): count for file, count in lines.items() if count > 320}


HOSTS = ["pypi", "files.pythonhosted", "pythonhosted", "registry.npmjs", "deb.debian", "download.pytorch"]
FOREIGN = re.compile(
    r"\.\./" + "shared"  # the developers' own folder
    r"|(?<![\w.])/(?:" + "|".join(["work", "root", "farm", "tmp"]) + r")/"
    r"|\b(?:" + "|".join(map(re.escape, HOSTS)) + r")\.(?:org|com|net)\b"
)


@pytest.mark.parametrize(
    "text", ["cd ../" + "shared/data", "'/" + "work/main'", "https://" + "pypi" + ".org/simple", "/" + "root/x"]
)
def test_the_search_for_foreign_names_finds_them(text: str) -> None:
    assert FOREIGN.search(text)
    assert not FOREIGN.search("a/" + "work/b and https://example.org/shared/data")


def test_no_text_names_the_machine_or_a_registry() -> None:
    found = []
    for file in tracked():
        try:
            lines = file.read_text().splitlines()
        except UnicodeDecodeError:  # a picture, or weights
            continue
        if file != ROOT / ".ci" / "run":  # CI alone knows where the developers' data lie
            found += [f"{file.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if FOREIGN.search(line)]
    assert not found


def tracked() -> list[Path]:
    """The files of the checkout, new ones included, ignored ones not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [file for file in (ROOT / name for name in names if name) if file.is_file() and not file.is_symlink()]


if __name__ == "__main__":
    print(import_table())
