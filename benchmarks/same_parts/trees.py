"""Two trees of the repository, and commands that run in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from same_parts.jobs import Job

# One thread: sums are then taken in one order. The assertion finds an installed package in the tree's place.
PROGRAM = """
import sys
import torch
torch.set_num_threads(1)
import constrained_diffusion
from constrained_diffusion.cli import main
tree = sys.argv.pop(1)
assert constrained_diffusion.__file__.startswith(tree), f"{constrained_diffusion.__file__} is not of {tree}"
main(sys.argv[1:])
"""


def git(root: Path, *arguments: str) -> str:
    """Return what a git command in `root` prints.

    Raises:
        RuntimeError: it failed; the message is git's own.
    """
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`git {' '.join(arguments)}` failed in {root}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def worktree(root: Path, commit: str, folder: Path) -> Iterator[Path]:
    """Check `commit` out into `folder`, a new one; it is gone afterwards."""
    git(root, "worktree", "add", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        git(root, "worktree", "remove", "--force", str(folder))


def do(job: Job, tree: Path, renamed: dict[str, str], folder: Path) -> Path:
    """Do `job` with the code of `tree`, its runs, logs and cache below `folder`; return the folder of the run.

    Raises:
        RuntimeError: a command failed; the message ends with the last line that it wrote.
    """
    folder.mkdir(parents=True)
    for command in job.commands:
        options = [*job.arguments(renamed), f"--trainer.default_root_dir={folder / 'runs'}"]
        with (folder / f"{command}.txt").open("w") as log:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(tree), command, "--config", job.config, *options],
                env={**os.environ, **environment(tree, folder)},
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            lines = (folder / f"{command}.txt").read_text().strip().splitlines() or ["it wrote nothing"]
            raise RuntimeError(f"`{command} --config {job.config}` ended with {done.returncode}: {lines[-1]}")
    return folder / "runs" / job.config.removesuffix(".yaml") / "latest"


def environment(tree: Path, folder: Path) -> dict[str, str]:
    """Return the variables of a command: the tree's code, one thread, a cache of its own, no GPU."""
    return {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "CONSTRAINED_DIFFUSION_CACHE": str(folder / "cache"),
    }
