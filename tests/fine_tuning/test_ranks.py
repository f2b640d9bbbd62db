"""The promise over ranks, case by case: same weights, same coefficients, same stop, nothing seen twice."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from constrained_diffusion.callbacks.controllers.base import ConstraintCallback
from constrained_diffusion.fine_tuning.steering import Steering

PROGRAM = Path(__file__).with_name("fit_ranks.py")
SMALL = runpy.run_path(str(PROGRAM))
CASES, TooBright = SMALL["CASES"], SMALL["TooBright"]
Found = dict[str, Any]


@pytest.fixture(scope="module")
def every_pair(tmp_path_factory: pytest.TempPathFactory, run_program: Any) -> list[dict[str, Found]]:
    """What rank 0 and rank 1 found in all cases: one program for all, since its imports take longer than the fits."""
    folder = tmp_path_factory.mktemp("two")
    run_program(PROGRAM, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module", params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def pair(every_pair: list[dict[str, Found]], name: str) -> list[Found]:
    return [rank[name] for rank in every_pair]


@pytest.fixture(scope="module")
def alone(name: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one process found, with as many rows per batch as the two had together."""
    found: Found = SMALL["fit"](CASES[name], 1, tmp_path_factory.mktemp("one"))
    return found


@pytest.fixture(scope="module")
def tolerance(name: str) -> float:
    return 1e-9 if CASES[name].precision == "64-true" else 1e-5


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_the_weights_are_the_same(pair: list[Found], alone: Found, tolerance: float) -> None:
    for rank in pair:
        assert_close(rank["weights"], dict(alone["weights"]), tolerance)
        assert_close(rank["ema"], dict(alone["ema"]), tolerance)
    moved = [(alone["weights"][key] - alone["ema"][key]).abs().max() for key in alone["ema"]]
    assert max(moved) > 1e-3  # something was learnt


def test_the_steering_is_the_same(pair: list[Found], alone: Found, name: str, tolerance: float) -> None:
    for rank in pair:
        assert rank["coefficients"] == alone["coefficients"]
        assert rank["rows"] == alone["rows"]
        assert_close(rank["penalties"], alone["penalties"], tolerance)
        assert_close(rank["steered_by"], alone["steered_by"], tolerance)
        assert len(rank["steered_by"]) == rank["steps"] == alone["steps"]
    assert pair[0]["steered_by"] == pair[1]["steered_by"]  # to the bit, for they decide by it
    assert len({coefficients[0] for coefficients in alone["coefficients"]}) > 1
    if name.startswith("adam guarded"):
        assert max(guard for *_, guard in alone["penalties"]) > 0.01  # it has acted
    if name.startswith("stop"):
        assert 5 < alone["steps"] < SMALL["STEPS"]
    else:
        assert alone["steps"] == SMALL["STEPS"]


def test_it_steers_by_the_mean_over_rows(alone: Found, name: str) -> None:
    micro, rows = torch.tensor(alone["penalties"]), torch.tensor(alone["rows"])[:, None]
    groups = zip(micro.split(CASES[name].accumulate), rows.split(CASES[name].accumulate), strict=True)
    expected = torch.stack([(p * n).sum(0) / n.sum() for p, n in groups])
    of_rows = slice(2)  # the third, where there is one, limits a mean: test_constraint_callback.py
    assert_close(torch.tensor(alone["steered_by"])[:, of_rows], expected[:, of_rows], 1e-6)


def test_ranks_see_what_one_sees(pair: list[Found], alone: Found, name: str) -> None:
    together = [a + b for a, b in zip(*(rank["train_rows"] for rank in pair), strict=True)]
    assert together == alone["train_rows"]
    own = list(zip(*(rank["own_rows"] for rank in pair), strict=True))
    assert [sum(both) for both in own] == alone["own_rows"] == alone["rows"]
    if name.startswith("few rows"):
        assert {(0, 1), (1, 0)} <= set(own)  # each rank was once without a row under T_phi
    if name.startswith("no rows"):
        assert alone["rows"][1::2] == [0] * SMALL["STEPS"]


def test_validation_is_of_every_row_and_seed_once(pair: list[Found], alone: Found, tolerance: float) -> None:
    for of in (lambda rank: rank["held_out"], lambda rank: rank["seeds"]["ema"]):
        assert sorted(of(pair[0]) + of(pair[1])) == of(alone) == list(range(len(of(alone))))
        assert len(of(pair[0])) != len(of(pair[1]))
    assert len(alone["held_out"]) == SMALL["HELD_OUT"]
    assert len(alone["seeds"]["ema"]) == SMALL["SEEDS"]
    whole = {name for name in alone["metrics"] if name.count("/") == 1}  # then come those of each constraint
    assert whole == {f"val/{m}" for m in ("diffusion_loss", "n", *OWN)}
    assert alone["metrics"]["val/n"] == SMALL["SEEDS"]
    for rank in pair:
        assert_close(rank["metrics"], alone["metrics"], max(tolerance, 1e-6))


OWN = ("own_violation_rate", "own_violation_upper_95")


@pytest.mark.parametrize("name", ["adam generated", "adam told generated"], indirect=True)
def test_the_generated_set_is_drawn_by_both_and_by_neither_twice(pair: list[Found], alone: Found) -> None:
    first, second = (rank["seeds"]["raw"] for rank in pair)
    assert sorted(first + second) == alone["seeds"]["raw"]
    assert len(set(first + second)) == len(first) + len(second) == SMALL["TRAIN"] + SMALL["HELD_OUT"]
    assert min(len(first), len(second)) > 15
    for rank in pair:
        assert torch.equal(rank["data"], alone["data"])


class Noted(ConstraintCallback):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[float]] = []

    def update(self, trainer: Any, module: Any, violations: Any) -> None:
        self.seen.append(violations.penalty.tolist())


def test_a_micro_batch_weighs_as_many_rows_as_it_has() -> None:
    class Step:
        global_step = 0

    callback, trainer = Noted(), Step()
    module = SimpleNamespace(steering=Steering([TooBright(), TooBright()]))
    for penalty, rows, trainer.global_step in (
        ([1.0, 0.0], 3, 0),
        ([5.0, 8.0], 1, 1),
        ([2.0, 4.0], 2, 1),
        ([9.0, 9.0], 0, 2),
    ):
        outputs = {"penalty": torch.tensor(penalty), "slack": torch.zeros(2), "penalty_rows": torch.tensor(float(rows))}
        callback.on_train_batch_end(trainer, module, outputs, None, 0)  # type: ignore[arg-type]
    assert callback.seen == [[2.0, 2.0], [2.0, 4.0]]
