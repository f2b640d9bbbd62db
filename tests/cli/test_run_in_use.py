"""A run that another process writes in, and the link `latest` of a fit that fails at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from constrained_diffusion.cli import command

QUIET = "--trainer.enable_progress_bar=false"
HOLD = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('process 7 on a', file=f, flush=True); print(1, flush=True); sys.stdin.read()"  # noqa: E501
RAISES = """
from constrained_diffusion import Constraint

class Raises(Constraint):
    def forward(self, clean):
        if clean.grad_fn is not None:  # in a training step
            raise RuntimeError("out of memory")
        return clean.flatten(1).mean(1)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: str) -> Path:
    """A working directory with tiny.yaml and a run of it, which has a checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONSTRAINED_DIFFUSION_RUNS", raising=False)
    monkeypatch.delenv("CONSTRAINED_DIFFUSION_DEBUG", raising=False)
    (tmp_path / "tiny.yaml").write_text(tiny_config)
    run = tmp_path / "runs" / "tiny" / "1"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("earlier")
    (run / "metrics.csv").write_text("step,loss\n")
    torch.save({"state_dict": {}, "global_step": 0}, run / "checkpoints" / "last.ckpt")
    (run.parent / "latest").symlink_to("1")
    return run


@pytest.fixture
def held(run: Path) -> Iterator[None]:
    words = [sys.executable, "-c", HOLD, str(run / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
@pytest.mark.parametrize("name", ["fit", "test", "predict"])
@pytest.mark.parametrize("checkpoint", ["last", "runs/tiny/1/checkpoints/last.ckpt"])
@pytest.mark.usefixtures("held")
def test_a_command_beside_one_that_writes_in_the_run(
    run: Path, name: str, checkpoint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if name == "fit" and checkpoint != "last":
        pytest.skip("a fit from a checkpoint has a run of its own")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(SystemExit) as stop:
        command.main([name, "--config", "tiny.yaml", "--ckpt_path", checkpoint, QUIET])
    assert stop.value.code == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: '{run}' is being written by process 7 on a")
    assert said.endswith("wait for that one or end it, and start this command again.")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_fit_that_fails_in_its_first_step_leaves_latest(
    run: Path, tmp_path: Path, tiny_config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising.py").write_text(RAISES)
    monkeypatch.syspath_prepend(tmp_path)
    start, end = tiny_config.index("    constraints:"), tiny_config.index("    sampler:")
    constraint = "    constraints: {class_path: raising.Raises}\n"
    (tmp_path / "tiny.yaml").write_text(tiny_config[:start] + constraint + tiny_config[end:])
    with pytest.raises(RuntimeError, match="out of memory"):
        command.main(["fit", "--config", "tiny.yaml", QUIET])
    assert sorted(path.name for path in run.parent.iterdir()) == ["1", "2", "latest"]
    assert (run.parent / "latest").resolve() == run
    assert not (run.parent / "2" / ".lock").exists()

    (tmp_path / "tiny.yaml").write_text(tiny_config)
    command.main(["fit", "--config", "tiny.yaml", QUIET, "--trainer.max_epochs=1"])
    assert (run.parent / "latest").resolve() == run.parent / "3"
    assert not (run.parent / "3" / ".lock").exists()
