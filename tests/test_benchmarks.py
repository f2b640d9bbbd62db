"""The one command that measures speed, with the smallest budget: that it measures, not how fast things are."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CHEAP = ["--pairs", "2", "--batch_size", "4", "--starts", "1", "--precision", "32-true"]


@pytest.fixture(scope="module")
def measure(run_program: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`measure(*parts)`: what the command prints, and the rows of its JSON by what they are."""

    def measure(*arguments: str) -> tuple[str, dict[str, Any]]:
        file = tmp_path_factory.mktemp("speed") / "speed.json"
        printed = run_program(BENCHMARKS / "speed.py", "--json", file, *CHEAP, "--only", *arguments)
        written = json.loads(file.read_text())
        assert written["machine"]["torch"] == torch.__version__
        assert written["settings"]["batch_size"] == 4
        return printed, {row["what"]: row for row in written["rows"]}

    return measure


def test_steps_memory_and_reads(measure: Any) -> None:
    printed, rows = measure("steps", "memory", "sync")
    for name in ("algorithm1", "anchored_algorithm1", "conditioned_algorithm1"):
        row = rows[f"step of {name} / plain"]
        assert row["low"] <= row["value"] <= row["high"]
        assert row["verdict"] == ("held" if row["value"] <= row["at_most"] else "missed")
        assert f"step of {name} / plain" in printed
        assert 1.0 <= rows[f"peak memory of {name} / plain"]["value"] < 2.0
    assert rows["step of algorithm1 / plain"]["at_most"] == (1.03 if torch.cuda.is_available() else 1.05)
    assert rows["naive step, two passes / plain"]["value"] > 1.4  # twice the work
    assert rows["host reads in a step, when_satisfied: stop"]["value"] == 0


@pytest.mark.slow
def test_starting_ranks_and_evaluation(measure: Any) -> None:
    more = ["--rank_steps", "2", "--rank_runs", "1", "--epochs", "1"]
    data = ["--data", "samples=128", "held_out=8", "val_samples=10"]
    _, rows = measure("import", "help", "ranks", "evaluation", *more, *data)
    assert rows["import constrained_diffusion, after torch and lightning"]["verdict"] == "held"
    assert 0 < rows["evaluation's share of a fit"]["value"] < 1
    ranks = [row for what, row in rows.items() if what.startswith("rows/s")]
    assert all(row["value"] is None or 0.1 < row["value"] < 10 for row in ranks)


def test_the_interval_of_a_median() -> None:
    table = runpy.run_path(str(BENCHMARKS / "speed_parts" / "table.py"))
    for n in (6, 7, 30, 100):
        median, low, high = table["median_interval"]([float(i) for i in range(n, 0, -1)])
        assert (median, low + high) == ((n + 1) / 2, n + 1)
        assert 1 - 2 * binom.cdf(low - 1, n, 0.5) >= 0.95
        assert 1 - 2 * binom.cdf(low, n, 0.5) < 0.95  # no narrower pair would do
    assert table["median_interval"]([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_a_row_says_whether_its_aim_is_held() -> None:
    row = runpy.run_path(str(BENCHMARKS / "speed_parts" / "table.py"))["Row"]
    assert (row("a", 1.0, at_most=1.05).verdict, row("a", 1.1, at_most=1.05).verdict) == ("held", "missed")
    assert row("a", 1.1).verdict == row("a", None, at_most=1.0).verdict == ""
    assert "not measured" in row("a", None, note="no compiler").text()


def test_the_zones_of_several_seeds_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a program that is run there
    zones = runpy.run_path(str(BENCHMARKS / "maze_zones.py"))

    def side(violations: int, walls: int) -> dict[str, Any]:
        metrics = {"plan_segment_violation_rate": (violations + 1) / 50, "executed_violation_rate": 0.25,
                   "executed_n": 4, "wall_collision_rate": walls / 50, "long_step_rate": 0.001, "step_p99": 0.05,
                   "curvature": 0.01, "acceleration": 0.001}  # fmt: skip
        return {"violation_rate": violations / 50, "n": 50, "metrics": metrics}

    results = [{"before": side(20, 3), "after": side(k, 2), "command_seconds": 100.0} for k in (0, 1)]
    assert zones["pooled"](results, "after", "violation_rate") == (1, 100)
    assert zones["pooled"](results, "after", "executed_violation_rate", "executed_n") == (2, 8)
    assert zones["cell"](1, 100).startswith("1.00% [0.03%, 5.45%], bound 4.66%")
    assert binom(100, 0.0466).cdf(1) == pytest.approx(0.05, abs=1e-3)  # what the bound says
    printed = zones["table"](results)
    assert "| plans with a point in a zone | 40.00% [" in printed
    assert "| 1.00% [0.03%, 5.45%], bound 4.66% |" in printed
    assert "fit, whole command, seconds: 100, 100" in printed


def test_polymers_of_several_seeds_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 10 samples of each of two seeds."""
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    program = runpy.run_path(str(BENCHMARKS / "polymer_preferred.py"))
    others = dict.fromkeys(program["MEANS"], 0.5)

    def side(valid: float, unique: float, new: float, high: float) -> dict[str, Any]:
        rates = {"validity_rate": valid, "uniqueness_rate": unique, "novelty_rate": new, "judge_high_rate": high}
        return {"n": 10, "metrics": {**others, **rates}}

    results = [
        {"before": side(0.8, 0.5, 1.0, 0.1), "after": side(1.0, 1.0, 0.9, 0.6), "command_seconds": 3.0},
        {"before": side(0.6, 1.0, 0.5, 0.2), "after": side(1.0, 0.9, 1.0, 0.3), "command_seconds": 4.0},
    ]
    assert program["hits"](results, "before") == {
        "validity": (14, 20), "uniqueness": (10, 14), "novelty": (7, 10), "judge: high class": (3, 20)
    }  # fmt: skip
    printed = program["table"](results)
    assert "| validity | 70.0% [45.7%, 88.1%] | 100.0% [83.2%, 100.0%] |" in printed
    assert "ratio of the high class: 3.0 [" in printed
    assert "fit, seconds: 3, 4" in printed


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with a table of 80 repeat units, whose conductivity rises with their length."""
    rows = [f"{'[Cu]' + kind * n}COC(=O)[Au],{10 ** (n / 4 - 7)}" for n in range(1, 6) for kind in KINDS]
    (tmp_path / "PolyGen-train-set-from-HTP-MD.csv").write_text("mol_smiles,conductivity\n" + "\n".join(rows) + "\n")
    return tmp_path


KINDS = [
    "C",
    "CO",
    "CN",
    "C(F)C",
    "C(C)O",
    "C(=O)C",
    "CS",
    "C(Cl)C",
    "CC(N)",
    "CC(O)",
    "NC",
    "C=C",
    "CCO",
    "CCN",
    "CCS",
    "CCCO",
]


def test_the_codings_of_polymers_with_two_steps(run_program: Any, units: Path) -> None:
    pytest.importorskip("denoising_diffusion_pytorch", reason="the extra `polymer` is not installed")
    file = units / "table.json"
    rows = ["ordinal", "one-hot"]
    settings = ["--data_dir", units, "--steps", "2", "--n", "4", "--json", file]
    printed = run_program(BENCHMARKS / "polymer_codings.py", *settings, "--rows", *rows)
    found = json.loads(file.read_text())
    assert [row["row"] for row in found] == rows
    for row in found:
        assert 0 <= row["valid_as_written"] <= 4
        assert row["new"] <= row["distinct"] <= row["valid_by_valence"] <= 4
        assert f"| {row['row']} | {row['parameters']:,} |" in printed


def test_preferences_beside_exact_values_with_one_epoch(run_program: Any, units: Path) -> None:
    printed = run_program(BENCHMARKS / "polymer_preferences.py", "--data_dir", units, "--epochs", "2")
    assert "1 split(s)" in printed
    assert "| held-out tenth, 8 units | judge's quarter, 18 units |" in printed
    for row in ("simulated preferences", "the same network, exact values", "kernel ridge, exact values"):
        assert f"| {row} | " in printed


@pytest.mark.slow
def test_preferences_on_two_splits_with_one_epoch(run_program: Any, units: Path) -> None:
    budget = ["--epochs", "2", "--fit_epochs", "1", "--runs", units / "runs"]
    printed = run_program(BENCHMARKS / "polymer_preferences.py", "--data_dir", units, "--splits", "0", "1", *budget)
    assert "2 split(s)" in printed
    assert (units / "runs" / "preference_1" / "latest" / "export").is_dir()
