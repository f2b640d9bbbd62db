"""The comparison of two trees' numbers, on small dictionaries: what differs is found, what was renamed is matched."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`part(name)`: a module of the benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a program that is run there
    return lambda name: importlib.import_module(name)


def one_bit_more(values: torch.Tensor) -> torch.Tensor:
    """The same, with the lowest bit of the last value turned."""
    changed = values.clone()
    changed.view(torch.int32)[-1] ^= 1
    return changed


def test_the_same_bits_are_no_difference(part: Any) -> None:
    values = {"a": torch.tensor([1.0, float("nan"), -0.0]), "b": torch.tensor(3), "c": torch.ones(0)}
    copies = {name: value.clone() for name, value in values.items()}
    assert part("same_parts.compare").differences(values, copies, {}) == []


def test_one_changed_bit_is_found(part: Any) -> None:
    values = torch.linspace(1, 1.5, 7)
    assert torch.allclose(values, one_bit_more(values), rtol=1e-6)
    (found,) = part("same_parts.compare").differences({"a": values}, {"a": one_bit_more(values)}, {})
    assert (found.name, found.what, found.expected) == ("a", "1 of 7 values, by at most 1.19e-07", "")


@pytest.mark.parametrize(
    ("now", "what"),
    [
        (torch.tensor([-0.0, 1.0]), "1 of 2 values, by at most 0"),
        (torch.tensor([0.0, 1.0]).double(), "float32 (2,) in the base, float64 (2,) now"),
        (torch.tensor([[0.0, 1.0]]), "float32 (2,) in the base, float32 (1, 2) now"),
    ],
)
def test_sign_type_and_shape_count(part: Any, now: torch.Tensor, what: str) -> None:
    assert part("same_parts.compare").difference(torch.tensor([0.0, 1.0]), now) == what


def test_a_tensor_that_one_tree_lacks_is_named(part: Any) -> None:
    base, current = {"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1), "c": torch.ones(1)}
    found = part("same_parts.compare").differences(base, current, {})
    assert [(each.name, each.what) for each in found] == [("b", "only in the base"), ("c", "only in the current tree")]


def test_what_differs_on_purpose_says_why_and_is_that_alone(part: Any) -> None:
    base, current = ({name: torch.full((1,), value) for name in ("log/a", "log/b", "ema")} for value in (0.0, 1.0))
    differences = part("same_parts.compare").differences
    found = differences(base, current, {"maze/log/*": "fault 1"}, "maze")
    assert {each.name: each.expected for each in found} == {"ema": "", "log/a": "fault 1", "log/b": "fault 1"}
    assert not any(each.expected for each in differences(base, current, {"mnist/*": "fault 1"}, "maze"))


def test_a_renamed_key_of_a_checkpoint_is_matched(part: Any) -> None:
    def checkpoint(names: dict[str, str], scheduler: str) -> dict[str, Any]:
        state = {key: torch.tensor([float(i)]) for i, key in enumerate(names.values())}
        momentum = {"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.ones(2)}}}
        callbacks = {scheduler: {"steps": 4, "recent": [0.5, True, None]}, "FitStatus": {"seconds": 0.123}}
        return {"state_dict": state, "optimizer_states": [momentum], "callbacks": callbacks}

    old = {"w": "denoiser.network.c.w", "e": "ema.c.w", "C": "penalty_coefficient", "a": "denoiser.schedule.a"}
    new = {
        "w": "networks.denoiser.network.c.w",
        "e": "networks.ema.c.w",
        "C": "loss.steering.penalty_coefficient",
        "a": "networks.denoiser.schedule.a",
    }
    of_checkpoint = part("same_parts.tensors").of_checkpoint
    base = dict(of_checkpoint(checkpoint(old, "PenaltyScheduler{'initial': 1}")))
    current = dict(of_checkpoint(checkpoint(new, "PenaltyScheduler{'initial': [1]}")))
    assert part("same_parts.compare").differences(base, current, {}) == []
    assert {"checkpoint/trained.c.w", "checkpoint/ema.c.w", "checkpoint/penalty_coefficient"} <= base.keys()
    assert {"optimizer/0/0/exp_avg", "controller/PenaltyScheduler/recent/1"} <= base.keys()
    assert not any("seconds" in name for name in base)  # no two runs take the same time


def test_all_that_a_run_left_is_collected(part: Any, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    for file, names in {
        cache / "generated" / "0f.safetensors": ["clean"],
        run / "export" / "unet" / "weights.safetensors": ["w"],
        run / "samples" / "samples-rank0.safetensors": ["samples", "seeds"],
        run / "noise" / "000000.safetensors": ["noise", "sample"],
    }.items():
        file.parent.mkdir(parents=True)
        save_file({name: torch.ones(2) for name in names}, file)
    (run / "metrics.csv").write_text("epoch,step,loss/total,val/fid,val/diffusion_loss\n0,1,0.5,,\n0,2,0.25,3,0.75\n")
    (run / "results.jsonl").write_text(json.dumps({"key": "0", "rewards": [1.5], "log_probabilities": [-1.0]}) + "\n")
    found = part("same_parts.tensors").collect(run, cache)
    assert sorted(found) == [
        "export/unet/weights/w",
        "log/loss/total",
        "log/val/diffusion_loss",
        "noise/000000/noise",
        "noise/000000/sample",
        "record/0/log_probabilities",
        "record/0/rewards",
        "samples/samples-rank0/samples",
        "samples/samples-rank0/seeds",
        "training_set/clean",
    ]
    assert found["log/loss/total"].tolist() == [0.5, 0.25]


def test_options_take_the_names_of_the_tree(part: Any) -> None:
    job = part("same_parts.jobs").Job("a.yaml", ("fit",), {"model.gamma": 5, "trainer.max_steps": 6}, {})
    assert job.arguments({}) == ["--model.gamma=5", "--trainer.max_steps=6"]
    assert job.arguments({"model.gamma": "model.loss_weight.gamma"})[0] == "--model.loss_weight.gamma=5"


def test_a_job_whose_package_is_missing_says_so(part: Any) -> None:
    job = part("same_parts.jobs").Job("a.yaml", ("fit",), {}, {"torch": "", "no_such_package": "maze"})
    assert job.lacks() == "needs no_such_package of the extra maze"


def test_a_worktree_is_removed_even_where_a_job_fails(part: Any, tmp_path: Path) -> None:
    trees, repository = part("same_parts.trees"), tmp_path / "repository"
    repository.mkdir()
    trees.git(repository, "init", "--quiet")
    (repository / "a.txt").write_text("first")
    trees.git(repository, "add", "a.txt")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    trees.git(repository, *who, "commit", "--quiet", "-m", "first")
    (repository / "a.txt").write_text("second")

    def fail() -> None:
        with trees.worktree(repository, "HEAD", tmp_path / "base") as base:
            raise KeyError((base / "a.txt").read_text())

    with pytest.raises(KeyError, match="first"):
        fail()
    assert not (tmp_path / "base").exists()
    listed = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 1
    with pytest.raises(RuntimeError, match="rev-parse no_such_commit"):
        trees.git(repository, "rev-parse", "no_such_commit")
