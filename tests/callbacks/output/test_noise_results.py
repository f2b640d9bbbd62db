"""What an interrupted noise optimisation left, and is damaged; going on from what is whole is in test_cli_killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from constrained_diffusion.callbacks import NoiseResults
from constrained_diffusion.noise_optimization.jobs import Job
from constrained_diffusion.reports.noise_rows import read_results, summary


class Trap:
    """Executed by any unpickling that executes code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_damaged_results_of_an_interrupted_command(tmp_path: Path) -> None:
    row = '{"key": "a", "reward_before": 0, "reward": 1, "probability_before": 1, "probability": 1, "best_step": 1, '
    row += '"steps": 1, "rewards": [0, 1], "log_probabilities": [0, 0]}'
    lines = [row, row[:50], "[1]", '{"key": 3}', row.replace('"reward": 1', '"reward": "1"'), "[" * 5000, "\xff"]
    lines += [row.replace("[0, 1]", "[]"), row.replace("[0, 1]", "[" + "9" * 400 + "]"), row.replace('"a"', "[]")]
    (tmp_path / "results.jsonl").write_text("\n".join(lines), encoding="latin-1")
    assert [found["key"] for found in read_results(tmp_path)] == ["a"]
    assert summary(read_results(tmp_path)).startswith("1 samples: mean reward 0 -> 1")


def test_a_damaged_state_of_an_interrupted_batch(tmp_path: Path) -> None:
    class Here:
        default_root_dir, datamodule, global_rank = tmp_path, None, 0

    (tmp_path / "unfinished").mkdir()
    file, jobs, mark = tmp_path / "unfinished" / "rank0.pt", [Job("a", None, 0)], tmp_path / "executed"
    for content in (
        {"jobs": [["a", None, 0]], "run": Trap(mark)},
        {"jobs": [["a", None, 0]]},
        {"jobs": [["a"]]},
        {},
        [1],
    ):
        torch.save(content, file)
        with pytest.raises(
            ValueError, match="rank0.pt', from which a batch would go on, is damaged .* delete it to start"
        ):
            NoiseResults().interrupted(Here(), jobs)  # type: ignore[arg-type]
    assert not mark.exists()
