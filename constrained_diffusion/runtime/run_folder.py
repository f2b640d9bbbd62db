"""The folder of a run: what is where, said once for whoever writes and whoever reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """Names what a run leaves. The command line makes the folder; from Python it is the Trainer's `default_root_dir`.

    Nothing is made or read here.
    """

    path: Path

    @classmethod
    def of(cls, trainer: Any) -> RunFolder:
        """Return the folder that a Trainer's run writes in."""
        return cls(Path(trainer.default_root_dir))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def title(self) -> str:
        """The last two names of its path: config and number."""
        path = self.path.resolve()
        return f"{path.parent.name} / {path.name}"

    @property
    def config(self) -> Path:
        """Written when a run begins; a folder of the command line's without it holds no results yet."""
        return self.path / "config.yaml"

    @property
    def lock(self) -> Path:
        """Names the process that writes in the folder, and is locked by it."""
        return self.path / ".lock"

    @property
    def metrics(self) -> Path:
        """The log of a fit."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """The same log for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def status(self) -> Path:
        """How a fit ended."""
        return self.path / "status.json"

    @property
    def results(self) -> Path:
        """What `test`, or a noise optimisation with an evaluation, measured."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """All of it as one page."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """A folder of `last_checkpoint` and `best_feasible`."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """What `--ckpt_path last` continues."""
        return self.checkpoints / "last.ckpt"

    @property
    def best_feasible(self) -> Path:
        """The feasible weights with the lowest held-out loss."""
        return self.checkpoints / "best_feasible.ckpt"

    @property
    def grids(self) -> Path:
        """A folder of pictures with many samples each."""
        return self.path / "grids"

    @property
    def overlays(self) -> Path:
        """A folder of pictures with all samples on top of each other."""
        return self.path / "overlays"

    @property
    def samples(self) -> Path:
        """A folder of what `predict` drew."""
        return self.path / "samples"

    @property
    def certificate(self) -> Path:
        """What is certain of `samples`."""
        return self.samples / "certificate.json"

    @property
    def noise(self) -> Path:
        """A folder of the noises that an optimisation found."""
        return self.path / "noise"

    @property
    def strips(self) -> Path:
        """A folder of pictures of samples on the way of their optimisation."""
        return self.path / "strips"

    @property
    def unfinished(self) -> Path:
        """A folder of what an interrupted noise optimisation goes on from; there until it has ended."""
        return self.path / "unfinished"

    @property
    def finished(self) -> Path:
        """An empty file that marks the end of a noise optimisation."""
        return self.path / "finished"

    def side(self, name: str) -> Path:
        """Return the folder of pictures of single samples, "before" or "after" their noise was optimised."""
        return self.path / name

    def rows(self, rank: int = 0) -> Path:
        """Return the file of a rank's finished samples, in a noise optimisation; in the end the first one has all."""
        return self.path / ("results.jsonl" if rank == 0 else f"results-rank{rank}.jsonl")
