"""An evaluation's figures of what lies in the folder of a noise optimisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from constrained_diffusion.callbacks.output import noise_figures
from constrained_diffusion.callbacks.output.noise_figures import before_and_after, samples
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.statistics import ViolationRate


class Above(Evaluation):
    """A sample violates where its first number exceeds 1."""

    subject = "high ones"

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.sizes = ViolationRate(), []

    def update(self, clean: Tensor) -> None:
        self.rate.update(clean[:, 0] > 1)

    def compute(self) -> dict[str, Any]:
        return {**self.rate.compute(), "metrics": {}}

    def reset(self) -> None:
        self.rate.reset()

    def marks(self, clean: Tensor) -> list[str]:
        return ["violation" if row[0] > 1 else "" for row in clean]

    def compare(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        after["metrics"]["fell_by"] = before["violation_rate"] - after["violation_rate"]


class Positive(Constraint):
    """g has two columns, one of which holds for all; NaN holds for none."""

    def forward(self, clean: Tensor) -> Tensor:
        return torch.stack([clean[:, 0], -torch.ones(len(clean))], dim=1)


def test_figures_of_all_finished_samples(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(noise_figures, "BATCH", 2)
    (tmp_path / "noise").mkdir()
    first = {"a": (2.0, 0.4), "b": (3.0, 0.7), "c": (0.9, -1.0), "d": (5.0, 1.5), "left": (9.0, 9.0)}
    for key, (before, sample) in first.items():
        tensors = {"before": torch.tensor([before, 0.0]), "sample": torch.tensor([sample, 0.0])}
        save_file(tensors, tmp_path / "noise" / f"{key}.safetensors")
    evaluation = Above()
    evaluation.update(torch.full((7, 2), 8.0))
    results = before_and_after(tmp_path, ["a", "b", "c", "d"], evaluation, [Positive(tolerance=0.5)])
    before, after = results["before"], results["after"]
    assert (before["violation_rate"], after["violation_rate"], after["n"]) == (3 / 4, 1 / 4, 4)
    assert (before["own_violation_rate"], after["own_violation_rate"]) == (1.0, 0.5)
    assert before["own_violation_upper_95"] == 1.0
    both = before_and_after(tmp_path, ["a", "b", "c", "d"], evaluation, [Positive(tolerance=1.0), Positive()])
    assert (both["before"]["own_violation_rate"], both["after"]["own_violation_rate"]) == (1.0, 0.75)
    each = {name: rate["violation_rate"] for name, rate in both["after"]["constraints"].items()}
    assert each == {"Positive_0": 0.25, "Positive_1": 0.75}
    assert after["metrics"]["fell_by"] == 0.5
    assert results["subject"] == "high ones"
    assert evaluation.compute()["n"] == 7  # as it was
    assert "own_violation_rate" not in before_and_after(tmp_path, ["a"], evaluation)["after"]
    torch.testing.assert_close(samples(tmp_path, ["d", "a", "c"], "after")[:, 0], torch.tensor([1.5, 0.4, -1.0]))


def test_a_sample_whose_g_is_no_number_violates(tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    broken = torch.tensor([float("nan"), 0.0])
    save_file({"before": broken, "sample": broken.clone()}, tmp_path / "noise" / "a.safetensors")
    assert before_and_after(tmp_path, ["a"], Above(), [Positive()])["after"]["own_violation_rate"] == 1.0
