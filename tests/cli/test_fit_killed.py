"""`lightning fit`, killed at random moments, while it writes, or told to end, and resumed: nothing differs."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

EPOCHS = 8
OFTEN = "    - {class_path: LastCheckpoint, init_args: {every_n_seconds: 0}}\n"  # after every epoch
CALLBACKS = """
import os, signal
from io import BytesIO
from pathlib import Path
import torch
from lightning.pytorch import Callback

class Mark(Callback):
    "Says when a process is set up, before anything is logged, and when it has done a step."
    def setup(self, trainer, pl_module, stage):
        Path("set-up").touch()
    def on_train_batch_end(self, *args):
        Path("step").touch()

class DieWriting(Callback):
    "Dies of SIGKILL in the middle of a checkpoint."
    def __init__(self, number: int):
        self.left = number
    def on_train_start(self, trainer, pl_module):
        whole = torch.save
        def save(content, file, *args, **kwargs):
            self.left -= 1
            if self.left:
                return whole(content, file, *args, **kwargs)
            whole(content, buffer := BytesIO())
            with open(file, "wb") if isinstance(file, (str, Path)) else file as opened:
                opened.write(buffer.getvalue()[: buffer.tell() // 2])
                opened.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        torch.save = save
"""
DUAL = "{class_path: DualAscent, init_args: {optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}}}"
BATCH = "{class_path: PenaltyScheduler, init_args: {scope: batch, max_iterations: 3, every_n_steps: 2}}"
TIMES = ("seconds", "evaluation_seconds", "dirpath", "best_model_path", "kth_best_model_path", "best_k_models")
PATHS = ("last_model_path", "current_score")
Killed = tuple[Path, list[int]]


class Place(NamedTuple):
    """A folder with a config."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "runs" / "tiny" / "1"

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start the fit, or go on with it, in a process of its own."""
        own = {"PYTHONPATH": os.pathsep.join([str(self.root), *sys.path]), "OMP_NUM_THREADS": "1"}
        own |= {"CONSTRAINED_DIFFUSION_RUNS": "runs", "CONSTRAINED_DIFFUSION_CACHE": str(self.root / "cache")}
        again = ["--ckpt_path", "last"] if (self.run / "checkpoints" / "last.ckpt").exists() else []
        if not again:  # killed before its first checkpoint: a fit anew
            subprocess.run(["rm", "-rf", str(self.run.parent)], check=True)
        for mark in ("set-up", "step"):
            (self.root / mark).unlink(missing_ok=True)
        command = [sys.executable, "-m", "constrained_diffusion.cli", "fit", "--config", "tiny.yaml"]
        with (self.root / "output").open("wb") as output:
            return subprocess.Popen(
                [*command, *again, *words], cwd=self.root, env={**os.environ, **own}, stdout=output, stderr=output
            )

    def wait_for(self, mark: str, process: subprocess.Popen[bytes]) -> None:
        give_up = time.monotonic() + 120
        while not (self.root / mark).exists():
            assert process.poll() is None, self.said
            assert time.monotonic() < give_up
            time.sleep(0.01)

    def finish(self, *words: str) -> None:
        assert self.start(*words).wait(300) == 0, self.said

    @property
    def said(self) -> str:
        return (self.root / "output").read_text()

    def checkpoint(self, name: str) -> dict[str, Any]:
        content = torch.load(self.run / "checkpoints" / name, weights_only=True)
        return {key: value for key, value in _timeless(content).items() if key != "loops"}

    @property
    def tensorboard_steps(self) -> list[int]:
        """Steps of the loss as TensorBoard shows them, what was purged left out."""
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(self.run / "tensorboard"), size_guidance={"scalars": 0})
        return [event.step for event in events.Reload().Scalars("loss/total")]

    @property
    def log(self) -> list[dict[str, str]]:
        with (self.run / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _timeless(v) for k, v in content.items() if k not in (*TIMES, *PATHS)}
    return content


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_config: str) -> Any:
    """`place(controller, epochs)`: a folder whose fit has dropout, a controller and marks."""

    def make(controller: str, epochs: int = EPOCHS) -> Place:
        root = tmp_path_factory.mktemp("place")
        (root / "marks.py").write_text(CALLBACKS)
        before, _, after = tiny_config.partition("    - class_path: PenaltyScheduler\n")
        rest = after.partition("\n")[2]
        text = f"{before}    - {controller}\n    - {{class_path: marks.Mark}}\n{OFTEN}{rest}"
        text = text.replace("max_epochs: 2", f"max_epochs: {epochs}\n  enable_progress_bar: false")
        text = text.replace("norm_num_groups: 4", "norm_num_groups: 4\n            dropout: 0.2")
        (root / "tiny.yaml").write_text(text)
        return Place(root)

    return make


@pytest.fixture(scope="module")
def whole(place: Any) -> Place:
    """A fit that nothing interrupted."""
    made: Place = place(DUAL)
    made.finish()
    return made


def equal(killed: Place, whole: Place, same: Any) -> None:
    for name in ("last.ckpt", "best_feasible.ckpt"):
        assert (killed.run / "checkpoints" / name).exists() == (whole.run / "checkpoints" / name).exists()
        if (whole.run / "checkpoints" / name).exists():
            same(killed.checkpoint(name), whole.checkpoint(name), name)
    assert killed.log == whole.log
    assert killed.tensorboard_steps == whole.tensorboard_steps
    assert not list(killed.run.rglob("*.part"))


def kill_at_random(place: Place, kills: int, seconds: float, seed: int) -> None:
    """Kill a fit `kills` times, each after a random part of its share of `seconds`, and let it end then."""
    moments = random.Random(seed)
    for _ in range(kills):
        process = place.start()
        place.wait_for("set-up", process)
        time.sleep(moments.uniform(0, seconds / kills))
        assert process.poll() is None, "the fit ended before all kills"
        process.send_signal(signal.SIGKILL)
        process.wait()
    place.finish()


def seconds_of(place: Place) -> float:
    """How long a finished fit was at it, from its set-up on."""
    return (place.run / "status.json").stat().st_mtime - (place.root / "set-up").stat().st_mtime


def test_killed_three_times_at_random(place: Any, whole: Place, same: Any) -> None:
    killed = place(DUAL)
    kill_at_random(killed, 3, seconds_of(whole), seed=0)
    equal(killed, whole, same)


def test_killed_in_the_middle_of_a_checkpoint(place: Any, whole: Place, same: Any) -> None:
    killed = place(DUAL)
    process = killed.start("--trainer.callbacks+=marks.DieWriting", "--trainer.callbacks.number=3")
    assert process.wait(300) == -signal.SIGKILL, killed.said
    assert (killed.run / "checkpoints" / "last.ckpt.part").exists()
    killed.finish()
    equal(killed, whole, same)


def test_told_to_end_and_told_again(place: Any, whole: Place, same: Any) -> None:
    told, steps = place(DUAL), [0]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = told.start()
        told.wait_for("step", process)
        process.send_signal(number)
        assert process.wait(60) == 128 + number, told.said
        steps.append(told.checkpoint("last.ckpt")["global_step"])
        assert f"{number.name} ended the fit after step {steps[-1]}" in told.said
    assert steps == sorted(set(steps))
    assert steps[-1] < 2 * EPOCHS
    told.finish()
    equal(told, whole, same)


@pytest.mark.slow
def test_killed_twenty_times_at_random(place: Any, same: Any) -> None:
    whole, killed = place(BATCH, 60), place(BATCH, 60)
    whole.finish()
    kill_at_random(killed, 20, seconds_of(whole), seed=1)
    equal(killed, whole, same)
