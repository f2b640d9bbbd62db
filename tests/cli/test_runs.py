"""Where runs lie: numbers, the link, what a failed start leaves, which checkpoint is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.rank_zero import _get_rank

from constrained_diffusion.cli import runs


@pytest.fixture(autouse=True)
def new_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def begun(config: str, root: Path) -> Path:
    run = runs.new_run(config, root)
    runs.begin(run, "text")
    return run


def test_a_path_is_taken_before_a_shipped_config(tmp_path: Path) -> None:
    assert runs.find_config("mnist.yaml") == runs.shipped_configs() / "mnist.yaml"
    assert runs.find_config("pretrain/mnist_judge") == runs.shipped_configs() / "pretrain" / "mnist_judge.yaml"
    (tmp_path / "mnist.yaml").write_text("own")
    assert runs.find_config("mnist.yaml").read_text() == "own"


def test_an_unknown_config_lists_the_shipped_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"no config 'mnits': .* mnist.yaml, .*pretrain/mnist_judge.yaml"):
        runs.find_config("mnits")


def test_config_names(tmp_path: Path) -> None:
    assert runs.config_name(runs.shipped_configs() / "pretrain" / "mnist_judge.yaml") == "pretrain/mnist_judge"
    assert runs.config_name(tmp_path / "deep" / "own.v2.yaml") == "own.v2"


def test_runs_are_numbered_and_the_link_shows_the_latest_that_began(tmp_path: Path) -> None:
    first, second = (begun("a/b", tmp_path) for _ in range(2))
    assert [first, second] == [tmp_path / "a" / "b" / "1", tmp_path / "a" / "b" / "2"]
    assert runs.latest_run("a/b", tmp_path) == second.resolve()
    third = runs.new_run("a/b", tmp_path)
    assert third.name == "3"
    assert runs.latest_run("a/b", tmp_path) == second.resolve()
    runs.begin(third, "text")
    assert runs.latest_run("a/b", tmp_path) == third.resolve()


def test_numbers_are_counted_as_numbers_and_gaps_stay(tmp_path: Path) -> None:
    for name in ("9", "10", "notes"):
        (tmp_path / "a" / name).mkdir(parents=True)
    assert runs.new_run("a", tmp_path).name == "11"


def test_a_folder_that_another_process_made_meanwhile_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    listed = list((tmp_path / "a").iterdir())
    (tmp_path / "a" / "2").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(listed))  # as it was a moment before
    assert runs.new_run("a", tmp_path).name == "3"


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "NODE_RANK": "0"}, True),  # torchrun
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),  # Lightning's own launcher
        ({"NODE_RANK": "1"}, False),  # and the same on a second node
    ],
)
def test_the_first_rank_is_known_from_the_launcher_s_variables(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runs.rank_zero_only, "rank", _get_rank() or 0)  # as when Lightning is imported
    assert runs.first_rank() is first


def test_beginning_keeps_the_config_that_is_there(tmp_path: Path) -> None:
    run = begun("a", tmp_path)
    runs.begin(run, "other")
    assert (run / "config.yaml").read_text() == "text"


def test_a_run_beside_the_fits_is_not_the_latest(tmp_path: Path) -> None:
    first = begun("a", tmp_path)
    runs.begin(runs.new_run("a", tmp_path), "text", latest=False)
    assert runs.latest_run("a", tmp_path) == first.resolve()


def test_what_did_not_begin_is_withdrawn_and_what_began_stays(tmp_path: Path) -> None:
    run = runs.new_run("a", tmp_path)
    (run / "tensorboard").mkdir()
    runs.withdraw(run)
    assert not (tmp_path / "a").exists()
    runs.withdraw(run)  # nothing to do

    first = begun("a", tmp_path)
    runs.withdraw(first)
    second = runs.new_run("a", tmp_path)
    runs.withdraw(second)
    assert first.is_dir()
    assert not second.exists()


def test_without_a_run_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run of 'a' below .* run `lightning fit` with this config first"):
        runs.latest_run("a", tmp_path)


def test_checkpoints_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints/last.ckpt to continue from"):
        runs.last_checkpoint(tmp_path)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.ckpt").touch()
    assert runs.best_checkpoint(tmp_path) == runs.last_checkpoint(tmp_path) == folder / "last.ckpt"
    (folder / "best_feasible.ckpt").touch()
    assert runs.best_checkpoint(tmp_path) == folder / "best_feasible.ckpt"
    assert runs.last_checkpoint(tmp_path) == folder / "last.ckpt"


def test_the_run_of_a_checkpoint(tmp_path: Path) -> None:
    run = begun("a", tmp_path)
    assert runs.run_of(run / "checkpoints" / "last.ckpt") == run
    assert runs.run_of(tmp_path / "a" / "latest" / "checkpoints" / "last.ckpt") == run
    assert runs.run_of(run / "other" / "last.ckpt") is None
    assert runs.run_of(tmp_path / "checkpoints" / "last.ckpt") is None


def test_checkpoints_are_looked_through_before_they_are_used(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    runs.check_checkpoint(None)
    assert runs.checkpoint_step(None) is None
    with pytest.raises(FileNotFoundError, match=r"no checkpoint '.*x.ckpt'"):
        runs.check_checkpoint(str(file))
    torch.save({"state_dict": {"w": torch.zeros(1000)}, "global_step": 7}, file)
    runs.check_checkpoint(str(file))
    assert runs.checkpoint_step(str(file)) == 7
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"cannot be read: it is truncated"):
        runs.check_checkpoint(str(file))
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match=r"cannot be read: .*it holds a list, not a dictionary"):
        runs.check_checkpoint(str(file))
    torch.save({"state_dict": {}}, file)
    with pytest.raises(ValueError, match=r"not a checkpoint of a fit: it has no global_step;"):
        runs.check_checkpoint(str(file))


class Payload:
    """Code that unpickling would run."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(), "global_step": 0}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="cannot be read"):
        runs.check_checkpoint(str(tmp_path / "x.ckpt"))
    assert not (tmp_path / "executed").exists()
