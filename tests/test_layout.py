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

GROUND, FIRST, SECOND, THIRD, ROOF = range(5)
FLOORS = {  # the longest name that fits counts
    "objectives": GROUND,
    "diffusion": GROUND,
    "randomness": GROUND,
    "metrics": GROUND,
    "maze.segments": GROUND,
    "maze.simulator": GROUND,
    "zoo": GROUND,
    "untrusted": GROUND,
    "fine_tuning.penalty": GROUND,
    "fine_tuning.formulation": GROUND,
    "fine_tuning.schedules": GROUND,
    "fine_tuning.errors": GROUND,
    "fine_tuning.conditioning": GROUND,
    "distributed": GROUND,
    "precision": GROUND,
    "noise_optimization.concentration": GROUND,
    "noise_optimization.orders": GROUND,
    "noise_optimization.regularizers": GROUND,
    "noise_optimization.problem": GROUND,
    "noise_optimization.gradients": FIRST,
    "noise_optimization.memory": FIRST,
    "noise_optimization.mapping": FIRST,
    "noise_optimization.optimizer": SECOND,
    "noise_optimization.record": SECOND,
    "noise_optimization.baselines": SECOND,
    "noise_optimization.diagnosis": SECOND,
    "noise_optimization": THIRD,
    "sampling": FIRST,
    "guides": SECOND,
    "token_sampling": FIRST,
    "maze": GROUND,
    "maze.recording": FIRST,
    "polymers": GROUND,
    "preferences": FIRST,
    "rejection": FIRST,
    "denoisers": FIRST,
    "constraints": FIRST,
    "rewards": FIRST,
    "saved": FIRST,
    "sharding": SECOND,
    "cpu_precision": SECOND,
    "callbacks": SECOND,
    "datamodules": SECOND,
    "fine_tuning": THIRD,
    "supervised": THIRD,
    "": ROOF,  # the package's own face may show everything
    "cli": ROOF,
    "mistakes": ROOF,
    "runs": ROOF,
    "termination": ROOF,
    "zoo.build": ROOF,  # these three are programs, run when weights are made
    "zoo.denoiser": ROOF,
    "zoo.drawn": ROOF,
    "zoo.planner": ROOF,
    "zoo.polymers": ROOF,
}
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


def floor(name: str) -> int:
    """A module's floor; a package's own `__init__` runs before all that is in it and stands as low as the lowest."""
    if name and MODULES[name].name == "__init__.py":
        inside = [other for other in MODULES if other.startswith(f"{name}.") and MODULES[other].name != "__init__.py"]
        return min([floor(other) for other in inside], default=named_floor(name))
    return named_floor(name)


def named_floor(name: str) -> int:
    known = [key for key in FLOORS if name == key or name.startswith(f"{key}.")]
    assert known, f"{name} stands on no floor: add it to FLOORS in {Path(__file__).name}"
    return FLOORS[max(known, key=len)]


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


@pytest.mark.parametrize(
    "folder",
    ["callbacks", "constraints", "datamodules", "denoisers", "fine_tuning", "metrics", "rewards", "zoo"],
)
def test_each_part_is_a_package(folder: str) -> None:
    assert (PACKAGE / folder / "__init__.py").is_file()


def test_types_are_announced() -> None:
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downwards(name: str) -> None:
    upwards = {other for other in own_imports(MODULES[name]) if other != name and floor(other) > floor(name)}
    assert not upwards, f"{name} (floor {floor(name)}) imports {', '.join(sorted(upwards))} from a floor above"


def test_the_import_reader_sees_all_kinds() -> None:
    text = "import a.b\nif TYPE_CHECKING:\n  from c import d\ndef f():\n  from e.g import h as i\nclass K:\n  import l"
    assert list(imports(ast.parse(text))) == ["a.b", "c.d", "e.g.h", "l"]
    assert list(imports(ast.parse(text), deferred=False)) == ["a.b", "l"]


def roots(name: str) -> set[str]:
    """The top-level packages that importing the module asks for."""
    return {found.split(".")[0] for found in imports(ast.parse(MODULES[name].read_text()), deferred=False)}


def test_the_ground_floor_needs_torch_alone() -> None:
    allowed = sys.stdlib_module_names | {"torch", "torchmetrics", PACKAGE.name}
    assert not {name: extra for name in MODULES if floor(name) == GROUND and (extra := roots(name) - allowed)}


def test_extras_are_imported_inside_the_functions_that_need_them() -> None:
    assert not {name: early for name in MODULES if (early := roots(name) & OPTIONAL)}


def loaded_by(statement: str) -> set[str]:
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_package_is_light() -> None:
    ground = ", ".join(f"constrained_diffusion.{name}" for name in MODULES if floor(name) == GROUND)
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
