"""The jobs that both trees do, small enough for minutes on one thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

# Options that the current tree calls otherwise: the base's name, the current one. Each tree has its own configs, so
# that only the options below need this.
RENAMED: dict[str, str] = {}


@dataclass(frozen=True)
class Job:
    """Commands with one shipped config.

    Args:
        config: its name.
        commands: of the command line, in order.
        options: what differs from the config, by the base's names.
        needs: optional packages, each with the extra that brings it.
    """

    config: str
    commands: tuple[str, ...]
    options: Mapping[str, Any]
    needs: Mapping[str, str]

    def arguments(self, renamed: Mapping[str, str]) -> list[str]:
        """Return the options as a command takes them; `renamed` maps names of the base to those of the tree."""
        return [f"--{renamed.get(name, name)}={value}" for name, value in self.options.items()]

    def lacks(self) -> str:
        """Return why the job cannot run here; empty where it can."""
        missing = [f"{name} of the extra {extra}" for name, extra in self.needs.items() if find_spec(name) is None]
        return f"needs {', '.join(missing)}" if missing else ""


def _fit(config: str, steps: int, needs: Mapping[str, str] | None = None, **data: Any) -> Job:
    """Return a fit of so many steps, three to four epochs and one validation of the held-out loss, and its samples."""
    trainer = {"max_steps": steps, "precision": "32-true", "check_val_every_n_epoch": 1, "accelerator": "cpu"}
    data = {"held_out": 8, "val_samples": 0, "predict_samples": 8, "sampler.steps": 10, **data}
    options = {f"trainer.{name}": value for name, value in trainer.items()}
    options |= {f"data.init_args.{name}": value for name, value in data.items()}
    return Job(config, ("fit", "predict"), options, needs or {})


JOBS = {
    "mnist": _fit("mnist.yaml", 12, samples=64, batch_size=16),
    "noise": Job(
        "dno_mnist.yaml",
        ("predict",),
        {
            "trainer.accelerator": "cpu",
            "model.init_args.steps": 5,
            "data.init_args.predict_samples": 8,
            "data.init_args.eval_batch_size": 8,
        },
        {},
    ),
    "maze": _fit("maze2d.yaml", 6, {"mujoco": "maze"}, samples=64, batch_size=8),
    "polymer": _fit("polymer.yaml", 6, {"rdkit": "polymer"}, samples=32, batch_size=16),
}
