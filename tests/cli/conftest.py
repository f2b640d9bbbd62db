"""A working directory with a config and an earlier run, and commands that must be refused in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from constrained_diffusion.cli import command


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: str) -> Path:
    """A working directory with a config, tiny.yaml, and an earlier run of it that has no checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONSTRAINED_DIFFUSION_RUNS", raising=False)
    monkeypatch.delenv("CONSTRAINED_DIFFUSION_DEBUG", raising=False)
    (tmp_path / "tiny.yaml").write_text(tiny_config)
    earlier = tmp_path / "runs" / "tiny" / "1"
    earlier.mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv", "results.json"):
        (earlier / name).write_text("earlier")
    (earlier.parent / "latest").symlink_to("1")
    return tmp_path


@pytest.fixture
def refused(place: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused("fit", ...)` runs a command that must be refused cleanly and returns its one sentence."""

    def run(*words: str, config: str | None = None) -> str:
        if config is not None:
            (place / "tiny.yaml").write_text(config)
        before = snapshot(place / "runs")
        with pytest.raises(SystemExit) as stop:
            command.main([*words, *([] if "--config" in words else ["--config", "tiny.yaml"])])
        said = capfd.readouterr().err.splitlines()
        assert stop.value.code == 2
        assert snapshot(place / "runs") == before
        assert sorted(path.name for path in (place / "runs" / "tiny").iterdir()) == ["1", "latest"]
        assert (place / "runs" / "tiny" / "latest").resolve().name == "1"
        assert [line for line in said if line.startswith("error: ")] == said[-1:]
        assert "Traceback" not in "".join(said)
        return said[-1].removeprefix("error: ")

    return run
