"""Every path of a run lies in it, under a name of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from constrained_diffusion.runtime.run_folder import RunFolder


def test_it_is_the_trainer_s(tmp_path: Path) -> None:
    run = RunFolder.of(SimpleNamespace(default_root_dir=str(tmp_path / "mnist" / "3")))
    assert run == RunFolder(tmp_path / "mnist" / "3")
    assert (str(run), run.title) == (str(tmp_path / "mnist" / "3"), "mnist / 3")


def test_all_lies_in_it_and_nothing_twice(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    names = [name for name, value in vars(RunFolder).items() if isinstance(value, property) and name != "title"]
    paths = [getattr(run, name) for name in names] + [run.rows(0), run.rows(1), run.side("before"), run.side("after")]
    assert all(path.is_relative_to(tmp_path) and path != tmp_path for path in paths)
    assert len(set(paths)) == len(paths) > 15
    assert run.best_feasible.parent == run.last_checkpoint.parent == run.checkpoints
    assert not list(tmp_path.iterdir())


def test_the_title_of_the_folder_one_stands_in_has_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist" / "3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mnist" / "3")
    assert RunFolder(Path()).title == "mnist / 3"
