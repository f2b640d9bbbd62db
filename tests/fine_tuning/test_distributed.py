"""Two ranks of batch b are one rank of batch 2 b: real processes that talk through gloo."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from constrained_diffusion.distributed import sum_over_ranks

SCRIPT = Path(__file__).with_name("two_ranks.py")
MINUTES = 5  # at most, on a machine that is busy; they need seconds


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


two_ranks = loaded(SCRIPT)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What rank 0 and rank 1 found, of 8 rows per batch each."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = [str(SCRIPT.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(SCRIPT), str(folder), "8"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 * MINUTES)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module", params=two_ranks.FORMULATIONS)
def formulation(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def alone(formulation: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process found, of 16 rows per batch."""
    components = loaded(SCRIPT.parents[1] / "conftest.py")
    found: dict[str, Any] = two_ranks.fit_and_test(components, formulation, 16, 1, tmp_path_factory.mktemp("alone"))
    return found


def assert_close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_two_ranks_of_b_are_one_of_two_b(pair: list[dict[str, Any]], alone: dict[str, Any], formulation: str) -> None:
    for rank in pair:
        found = rank[formulation]
        assert found["steps"] == alone["steps"] == 8
        assert_close(found["weights"], dict(alone["weights"]))
        assert_close(found["ema"], dict(alone["ema"]))
    assert not torch.allclose(alone["weights"]["last.weight"], alone["ema"]["last.weight"])  # something was learnt


def test_both_steer_alike(pair: list[dict[str, Any]], alone: dict[str, Any], formulation: str) -> None:
    assert pair[0][formulation]["penalties"] == pair[1][formulation]["penalties"]
    assert_close(pair[0][formulation]["penalties"], alone["penalties"])
    for rank in pair:
        assert rank[formulation]["coefficients"] == alone["coefficients"]
    assert len(set(alone["coefficients"])) > 1
    assert max(alone["penalties"]) > 1e-3


def test_both_measure_alike(pair: list[dict[str, Any]], alone: dict[str, Any], formulation: str) -> None:
    assert alone["logged"].keys() >= {"val/diffusion_loss", "val/own_violation_rate", "val/own_violation_upper_95"}
    for rank in pair:
        assert_close(rank[formulation]["logged"], alone["logged"])
        for side in ("before", "after"):
            assert rank[formulation]["results"][side]["n"] == 9
            assert rank[formulation]["results"][side] == alone["results"][side]


def test_alone_a_sum_is_the_value_itself_without_gradient() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    total = sum_over_ranks(values)
    assert total.tolist() == [1.0, 2.0]
    assert not total.requires_grad
    total += 1
    assert values.tolist() == [1.0, 2.0]
