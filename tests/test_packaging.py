"""What an installation holds: sdist, wheel, commands, extras; and the Makefile that installs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PathDistribution, distribution, entry_points
from pathlib import Path
from zipfile import ZipFile

import pytest

from constrained_diffusion.runtime.distribution import DISTRIBUTION

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


OUTER = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VENV", "PYTHON"}  # what `make test` would pass on to a make of ours
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in OUTER}


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command to its end and return what it printed; its error output is the failure's message."""
    result = subprocess.run(command, cwd=cwd, env={**ENVIRONMENT, **environment}, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def files_of_the_checkout() -> list[str]:
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    return [name for name in names if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel built from a copy of the checkout, and the wheel built from the sdist of that copy."""
    folder = tmp_path_factory.mktemp("build")
    for name in files_of_the_checkout():
        target = folder / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target, follow_symlinks=False)
    build = [sys.executable, "-m", "build", "--no-isolation"]
    run(*build, "--wheel", "--outdir", str(folder / "direct"), cwd=folder / "copy")
    run(*build, "--outdir", str(folder / "by-sdist"), cwd=folder / "copy")  # sdist first, then the wheel from it
    (direct,), (by_sdist,) = (folder / "direct").glob("*.whl"), (folder / "by-sdist").glob("*.whl")
    return direct, by_sdist


@pytest.fixture(scope="module")
def wheel_names(built: tuple[Path, Path]) -> list[str]:
    return sorted(ZipFile(built[0]).namelist())


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in, away from the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    run(*pip, "--target", str(folder), str(built[0]), cwd=folder)
    return folder


def test_the_wheel_installs_one_package_its_way_in_and_its_metadata(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    metadata = f"lightning_constrained_diffusion-{PROJECT['version']}.dist-info"
    assert tops == {"constrained_diffusion", "lightning_constrained_diffusion.py", metadata}


def test_the_wheel_holds_all_that_the_checkout_has(wheel_names: list[str]) -> None:
    expected = {
        f"constrained_diffusion/{name}" if name.startswith("configs/") else name
        for name in files_of_the_checkout()
        if name.startswith(("constrained_diffusion/", "lightning_constrained_diffusion.py", "configs/"))
    }
    assert {name for name in wheel_names if ".dist-info/" not in name} == expected
    assert "constrained_diffusion/py.typed" in expected
    assert "constrained_diffusion/configs/mnist.yaml" in expected


@pytest.mark.parametrize("weights", ["mnist_denoiser", "mnist_classifier", "mnist_judge"])
def test_the_zoo_is_in_the_wheel(weights: str, wheel_names: list[str]) -> None:
    inside = [name for name in wheel_names if name.startswith(f"constrained_diffusion/zoo/{weights}/")]
    assert any(name.endswith(".safetensors") for name in inside)
    assert {"CARD.md", "card.json"} <= {Path(name).name for name in inside}


def test_the_sdist_makes_the_same_wheel(built: tuple[Path, Path]) -> None:
    direct, by_sdist = (ZipFile(wheel) for wheel in built)
    assert {i.filename: i.CRC for i in direct.infolist()} == {i.filename: i.CRC for i in by_sdist.infolist()}


def test_the_metadata(installed: Path) -> None:
    (found,) = installed.glob("*.dist-info")
    metadata = PathDistribution(found).metadata
    assert (metadata["Name"], metadata["License-Expression"]) == (DISTRIBUTION, "Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra") or []) == set(EXTRAS)
    assert {file.name for file in (found / "licenses").iterdir()} == {"LICENSE", "NOTICE"}


def test_both_commands_are_installed_and_are_one_program(installed: Path) -> None:
    (found,) = installed.glob("*.dist-info")
    scripts = {script.name: script.value for script in PathDistribution(found).entry_points}
    assert scripts == dict.fromkeys(["lightning", "constrained-diffusion"], "lightning_constrained_diffusion:main")
    assert {file.name for file in (installed / "bin").iterdir()} == set(scripts)


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_lightning_itself_still_leaves_the_command_to_us(name: str) -> None:
    scripts = {script.name for script in distribution(name).entry_points if script.group == "console_scripts"}
    assert scripts <= {"fabric"}, f"{name} now installs {scripts}: two programs would fight for one name"


def test_no_other_installed_distribution_gives_the_command() -> None:
    given = {script.module.split(".")[0] for script in entry_points(group="console_scripts", name="lightning")}
    assert given
    assert given <= {"constrained_diffusion", "lightning_constrained_diffusion"}


def test_the_installed_wheel_runs_elsewhere(installed: Path, tmp_path: Path) -> None:
    shown = run(sys.executable, "-m", "constrained_diffusion.cli", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert {"fit", "validate", "test", "predict"} <= set(re.findall(r"\w+", shown))


def test_the_installed_wheel_finds_its_own_configs(installed: Path, tmp_path: Path) -> None:
    program = "from constrained_diffusion.cli.runs import find_config; print(find_config('mnist.yaml'))"
    shown = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(shown.strip()) == installed / "constrained_diffusion" / "configs" / "mnist.yaml"


def test_the_installed_program_reads_a_shipped_config(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "constrained_diffusion.cli", "fit", "--config", "mnist.yaml", "--print_config"]
    shown = run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert "ConstrainedDiffusion" in shown
    assert not list(tmp_path.iterdir()), "printing a config leaves nothing behind"


def test_make_without_a_target_lists_every_target() -> None:
    listed = re.findall(r"^  (\S+) +\S", run("make", cwd=ROOT), flags=re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())
    assert {"demo", "test", "lint", "types"} <= set(listed)


def make_new(target: str, environment: Path) -> list[str]:
    """The commands that `make target` would run where `environment` is the folder of the virtual environment."""
    return run("make", "--dry-run", target, f"VENV={environment}", cwd=ROOT).splitlines()


def test_make_demo_installs_fits_and_tests(tmp_path: Path) -> None:
    commands = make_new("demo", tmp_path)
    assert commands[-2:] == [f"{tmp_path}/bin/lightning {verb} --config mnist.yaml" for verb in ("fit", "test")]
    assert any("--constraint constraints.txt" in command and "[report]" in command for command in commands)


def test_make_demo_maze_installs_the_extra_and_runs_both_configs(tmp_path: Path) -> None:
    commands = make_new("demo-maze", tmp_path)
    program = f"{tmp_path}/bin/lightning"
    names = [f"{program} {verb} --config {name}.yaml" for name in ("maze2d", "maze2d_goal") for verb in ("fit", "test")]
    assert commands[-4:] == names
    assert any("[maze]" in command for command in commands)


def test_make_demo_polymer_installs_the_extra_and_runs_its_config(tmp_path: Path) -> None:
    commands = make_new("demo-polymer", tmp_path)
    assert commands[-2:] == [f"{tmp_path}/bin/lightning {verb} --config polymer.yaml" for verb in ("fit", "test")]
    assert any("[polymer]" in command for command in commands)


def test_make_installs_once(tmp_path: Path) -> None:
    for step in (".created", ".installed", ".installed-dev"):
        (tmp_path / step).touch()
    assert len(make_new("demo", tmp_path)) == 2
    os.utime(tmp_path / ".installed", (0, 0))  # older than pyproject.toml
    assert any("pip install" in command for command in make_new("demo", tmp_path))


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1"\nexit 1\n')
    old.chmod(0o755)
    for python, reason in ((old, "is Python 3.9.1"), (tmp_path / "none", "there is no")):
        command = ["make", "venv", f"PYTHON={python}", f"VENV={tmp_path}/env"]
        result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert result.returncode != 0
        assert "Python 3.11 or newer is needed" in result.stderr
        assert reason in result.stderr
    assert not (tmp_path / "env").exists()


def test_the_constraints_are_names_and_versions_and_cover_what_is_asked_for() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line) for line in lines)
    asked = [*PROJECT["dependencies"], *(requirement for extra in EXTRAS.values() for requirement in extra)]
    names = {re.split(r"[\[><= ]", requirement)[0].lower() for requirement in asked} - {PROJECT["name"]}
    assert names <= {line.split("==")[0] for line in lines}
