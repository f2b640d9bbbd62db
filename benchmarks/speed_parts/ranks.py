"""Rows per second on two gloo ranks over one; started as a program it is one rank of a fit.

python ranks.py THREADS BATCH_SIZE STEPS PRECISION
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

sys.path.insert(0, str(Path(__file__).parents[1]))

from speed_parts.step import QUIET, Noise, module
from speed_parts.table import Row, row_of

WARM = 3  #: steps before the clock starts


class Clock(Callback):
    """Measures the seconds of the steps after the first few."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == WARM:
            self.start = time.perf_counter()
        self.end = time.perf_counter()


def fit(threads: int, batch_size: int, steps: int, precision: Any) -> float:
    """Be one rank; return its rows per second."""
    torch.set_num_threads(threads)
    clock, world = Clock(), int(os.environ["WORLD_SIZE"])
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=DDPStrategy(process_group_backend="gloo") if world > 1 else "auto",
        max_steps=WARM + steps,
        precision=precision,
        default_root_dir=tempfile.mkdtemp(),
        log_every_n_steps=1000,
        callbacks=[clock],
        **QUIET,
    )
    trainer.fit(module("algorithm1"), datamodule=Noise(batch_size=batch_size * world))
    return batch_size * steps / (clock.end - clock.start)


def together(ranks: int, threads: int, batch_size: int, given: Any) -> float:
    """Return the rows per second of so many ranks together, each with these threads and rows a step."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": listener.getsockname()[1], "NODE_RANK": 0}
    place |= {"WORLD_SIZE": ranks, "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, *map(str, (threads, batch_size, given.rank_steps, given.precision))]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **{name: str(value) for name, value in place.items()}, "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    ended = [process.communicate() for process in started]
    failed = [err for process, (_, err) in zip(started, ended, strict=True) if process.returncode]
    if failed:
        raise RuntimeError(f"a rank failed: {failed[0].strip().splitlines()[-1:]}")
    return sum(float(out.splitlines()[-1]) for out, _ in ended)


def rows(given: Any) -> Iterator[Row]:
    """Yield two ranks of half the cores and rows over one rank of all of them, and over one rank of half of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not cores or cores < 2:
        yield Row("rows/s of two ranks / one", None, note="needs two cores")
        return
    half, part, whole, alone = cores // 2, given.batch_size // 2, [], []
    for _ in range(given.rank_runs):
        two = together(2, half, part, given)
        whole.append(two / together(1, 2 * half, 2 * part, given))
        alone.append(two / together(1, half, part, given))
    note = f"gloo, algorithm1, {given.rank_steps} steps, {given.rank_runs} runs"
    yield row_of(f"rows/s of 2 ranks of {half} cores / 1 rank of {2 * half}", whole, note=f"{note}; ideal 1")
    yield row_of(f"rows/s of 2 ranks of {half} cores / 1 rank of {half}", alone, note="ideal 2")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(fit(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
