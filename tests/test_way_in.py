"""The commands say which module hides the package, and run where none does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder with a file of the package's name, which would tell if it were run."""
    (tmp_path / "constrained_diffusion.py").write_text("raise SystemExit('a stranger was run')\n")
    return tmp_path


def start(*path: Path) -> subprocess.CompletedProcess[str]:
    """Do what the console scripts do."""
    program = "from lightning_constrained_diffusion import main; import sys; sys.argv[1:] = ['--help']; main()"
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, "-c", program], cwd=path[0], env=given, capture_output=True, text=True)


def test_the_other_project_is_named_with_the_command_that_removes_it(other: Path) -> None:
    metadata = other / "constrained_diffusion-1.2.6.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: constrained-diffusion\nVersion: 1.2.6\n")
    ended = start(other, ROOT)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"error: '{other}/constrained_diffusion.py', a module of another project, the distribution "
        "'constrained-diffusion', hides the package constrained_diffusion, which these commands run: "
        "pip uninstall constrained-diffusion\n"
    )


def test_a_file_of_nobody_is_named(other: Path) -> None:
    ended = start(other, ROOT)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"'{other}/constrained_diffusion.py', a module of something else, hides the package" in ended.stderr
    assert ended.stderr.endswith("rename it, or take its folder off Python's path\n")


def test_a_file_that_comes_later_hides_nothing(other: Path) -> None:
    ended = start(ROOT, other)
    assert ended.returncode == 0, ended.stderr
    assert "predict" in ended.stdout


def test_beside_the_package_a_file_hides_nothing(other: Path) -> None:
    """As where pip installs both into one folder."""
    (other / "constrained_diffusion").symlink_to(ROOT / "constrained_diffusion")
    (other / "lightning_constrained_diffusion.py").symlink_to(ROOT / "lightning_constrained_diffusion.py")
    ended = start(other)
    assert ended.returncode == 0, ended.stderr
