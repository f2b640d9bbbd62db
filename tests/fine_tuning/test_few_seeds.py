"""Fewer samples than ranks: every command ends, with the figures and the files of one rank."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

PROGRAM = Path(__file__).with_name("few_seeds_ranks.py")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, run_program: Any) -> tuple[Path, list[Any]]:
    """The folder of three ranks, and what each of them measured."""
    folder = tmp_path_factory.mktemp("three")
    run_program(PROGRAM, folder)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.mark.parametrize("kind", ["images", "plans"])
def test_three_ranks_with_two_seeds_give_what_one_gives(three: Any, tmp_path: Path, kind: str) -> None:
    folder, ranks = three
    alone = runpy.run_path(str(PROGRAM))["commands"](kind, tmp_path / kind, 1)
    for rank in ranks:
        assert rank[kind].keys() == alone.keys()
        for command in ("fit", "validate"):
            assert rank[kind][command] == pytest.approx(alone[command], rel=1e-4, nan_ok=True)
            assert alone[command]["val/n"] == 2
        assert rank[kind]["test"]["after"]["n"] == 2
        _same(rank[kind]["test"], alone["test"])
    if kind == "images":
        assert alone["test"]["after"]["metrics"]["fid"] > 0
    certificates = [json.loads((at / kind / "samples" / "certificate.json").read_text()) for at in (folder, tmp_path)]
    assert certificates[0]["draws_per_seed"] == certificates[1]["draws_per_seed"]
    files = sorted((folder / kind / "samples").glob("*.safetensors"))
    assert [load_file(file)["seeds"].tolist() for file in files] == [[0], [1]]  # and none of the third


def _same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            _same(value, other[key])
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)
    else:
        assert one == other
