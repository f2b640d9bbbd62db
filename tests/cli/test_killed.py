"""`lightning predict --config dno_mnist.yaml`, killed with SIGKILL between two batches and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from constrained_diffusion.cli import command

COMMAND = [
    "predict", "--config", "dno_mnist.yaml", "--model.init_args.steps=12", "--data.init_args.predict_samples=6",
    "--data.init_args.eval_batch_size=3", "--trainer.callbacks=NoiseResults",
    "--trainer.callbacks.save_every_seconds=0", "--trainer.precision=32-true",
]  # fmt: skip


def test_a_killed_command_goes_on_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONSTRAINED_DIFFUSION_RUNS", raising=False)
    run = tmp_path / "runs" / "dno_mnist" / "1"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def half_done(run: Path) -> bool:
        """Whether the state of the second batch is there: it is younger than the rows of the first."""
        try:
            return (run / "unfinished" / "rank0.pt").stat().st_mtime_ns > (run / "results.jsonl").stat().st_mtime_ns
        except FileNotFoundError:
            return False

    with subprocess.Popen([sys.executable, "-m", "constrained_diffusion.cli", *COMMAND], env=environment) as process:
        give_up = time.monotonic() + 300
        while not half_done(run):
            assert process.poll() is None, "the command ended before it could be killed"
            assert time.monotonic() < give_up
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    kept = (run / "results.jsonl").read_bytes()
    assert len(kept.splitlines()) == 3
    assert not (run / "finished").exists()

    command.main(COMMAND)
    assert [path.name for path in run.parent.iterdir() if path.name.isdigit()] == ["1"]
    rows = (run / "results.jsonl").read_bytes()
    assert rows.startswith(kept)
    assert [json.loads(row)["key"] for row in rows.splitlines()] == [f"seed-{i:06d}" for i in range(6)]
    assert all(len(json.loads(row)["rewards"]) == 13 for row in rows.splitlines())
    assert (run / "finished").exists()
    assert not (run / "unfinished").exists()

    command.main(COMMAND)  # all is done, so this is a new run, and one without interruption
    whole = [json.loads(row) for row in (run.parent / "2" / "results.jsonl").read_text().splitlines()]
    for ours, theirs in zip(rows.splitlines(), whole, strict=True):
        assert json.loads(ours)["rewards"] == pytest.approx(theirs["rewards"], abs=1e-4)
