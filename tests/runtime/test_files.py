"""Files that are whole or not there, whatever comes in between."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from constrained_diffusion.callbacks.run.checkpoint_io import AtomicCheckpointIO
from constrained_diffusion.runtime import files


def test_json_is_written_as_it_is_read(tmp_path: Path) -> None:
    value = {"status": "feasible", "names": ["ünits", "a\u2028b"], "rate": 0.25}
    files.write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_bytes()) == value
    files.write_json(tmp_path / "x.json", [1, 2], indent=None)
    assert (tmp_path / "x.json").read_bytes() == b"[1, 2]\n"
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "status.json"
    files.write_json(file, {"status": "feasible"})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(file, {"status": "diverged"})
    assert json.loads(file.read_text()) == {"status": "feasible"}
    assert os.listdir(tmp_path) == ["status.json"]


def test_what_cannot_be_said_in_json_leaves_the_earlier_file(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "x.json", {"a": object()})
    assert (tmp_path / "x.json").read_text() == "1\n"


@pytest.mark.parametrize("kind", ["json", "checkpoint"])
def test_it_is_on_the_disk_before_it_takes_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    done: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(f"{os.fstat(descriptor).st_size > 0} on disk"))
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("renamed"), rename(self, target))[1])
    if kind == "json":
        files.write_json(tmp_path / "x", {"a": 1})
    else:
        AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "x")
    assert done == ["True on disk", "renamed"]


def test_a_part_that_a_kill_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.json.part").write_text('{"half": ')
    files.write_json(tmp_path / "x.json", 1)
    assert os.listdir(tmp_path) == ["x.json"]


def test_earlier_ones_are_put_aside_by_number(tmp_path: Path) -> None:
    for content in "abc":
        files.rename_existing(tmp_path / "x.json")
        (tmp_path / "x.json").write_text(content)
    assert [(tmp_path / name).read_text() for name in ("x-1.json", "x-2.json", "x.json")] == ["a", "b", "c"]


def test_an_interrupt_leaves_the_earlier_file_and_no_part_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    files.write_text(tmp_path / "x.json", "whole")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "x.json", "half")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "whole")]


def test_a_full_disk_or_quota_is_found_behind_other_errors() -> None:
    full = OSError(errno.EDQUOT, "Disk quota exceeded")
    named, met = ValueError("could not save"), RuntimeError("while cleaning up")
    named.__cause__, met.__context__ = full, named
    assert files.disk_full(met) is full
    assert files.disk_full(OSError(errno.EACCES, "Permission denied")) is None
    assert files.disk_full(None) is None
