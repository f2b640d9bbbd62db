"""Where runs lie: numbers, the link, what a failed start leaves, which checkpoint is meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.rank_zero import _get_rank

from constrained_diffusion.cli import runs
from constrained_diffusion.runtime.run_folder import RunFolder


@pytest.fixture(autouse=True)
def new_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def begun(config: str, root: Path) -> RunFolder:
    run = runs.new_run(config, root)
    runs.begin(run, "text")
    runs.point_latest(run)
    return run


def at(path: Path) -> RunFolder:
    return RunFolder(path.resolve())


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
    assert [first.path, second.path] == [tmp_path / "a" / "b" / "1", tmp_path / "a" / "b" / "2"]
    assert runs.latest_run("a/b", tmp_path) == at(second.path)
    third = runs.new_run("a/b", tmp_path)
    assert third.path.name == "3"
    runs.begin(third, "text")
    assert runs.latest_run("a/b", tmp_path) == at(second.path)
    runs.point_latest(third)
    assert runs.latest_run("a/b", tmp_path) == at(third.path)
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["1", "2", "3", "latest"]


def test_a_link_that_a_kill_left_half_made_does_not_stop_the_next(tmp_path: Path) -> None:
    run = runs.new_run("a", tmp_path)
    (tmp_path / "a" / f".latest-{os.getpid()}").symlink_to("7")  # of an earlier process with this number
    runs.point_latest(run)
    assert runs.latest_run("a", tmp_path) == at(run.path)
    assert sorted(os.listdir(tmp_path / "a")) == ["1", "latest"]


def test_a_folder_in_the_place_of_the_link_is_put_aside(tmp_path: Path) -> None:
    copied = tmp_path / "a" / "latest"  # as by a copy that follows links
    copied.mkdir(parents=True)
    (copied / "config.yaml").write_text("theirs")
    runs.point_latest(runs.latest_run("a", tmp_path))  # `--ckpt_path last` goes on in it
    assert (copied / "config.yaml").read_text() == "theirs"
    assert not copied.is_symlink()
    run = begun("a", tmp_path)
    assert runs.latest_run("a", tmp_path) == at(run.path)
    assert (tmp_path / "a" / "latest-1" / "config.yaml").read_text() == "theirs"


def test_without_links_a_fit_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(self: Path, target: str) -> None:
        raise OSError("Operation not supported")

    run = runs.new_run("a", tmp_path)
    monkeypatch.setattr(Path, "symlink_to", unable)
    with pytest.warns(UserWarning, match=r"cannot be made a link .* give the path of .*last.ckpt"):
        runs.point_latest(run)


def test_what_a_killed_command_left_before_its_run_began_is_taken_away(tmp_path: Path) -> None:
    dead, own = runs.new_run("a", tmp_path), tmp_path / "a" / "2"
    dead.lock.write_text("process 1")
    (dead.path / "tensorboard").mkdir()
    own.mkdir()
    (own / "status.json").write_text("of a Trainer from Python")
    assert runs.new_run("a", tmp_path).path == tmp_path / "a" / "3"
    assert not dead.path.exists()
    assert (own / "status.json").exists()


def test_numbers_are_counted_as_numbers_and_gaps_stay(tmp_path: Path) -> None:
    for name in ("9", "10", "notes"):
        (tmp_path / "a" / name).mkdir(parents=True)
    assert runs.new_run("a", tmp_path).path.name == "11"


def test_a_folder_that_another_process_made_meanwhile_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    listed = list((tmp_path / "a").iterdir())
    (tmp_path / "a" / "2").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(listed))  # as it was a moment before
    assert runs.new_run("a", tmp_path).path.name == "3"


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
        ({"OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"OMPI_COMM_WORLD_RANK": "1"}, False),  # MPI
        ({"PMI_RANK": "3"}, False),
    ],
)
def test_the_first_rank_is_known_from_the_launcher_s_variables(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK", *runs.RANKS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runs.rank_zero_only, "rank", _get_rank() or 0)  # as when Lightning is imported
    assert runs.first_rank() is first


def test_beginning_keeps_the_config_that_is_there(tmp_path: Path) -> None:
    run = begun("a", tmp_path)
    runs.begin(run, "other")
    assert run.config.read_text() == "text"


def test_a_run_beside_the_fits_is_not_the_latest(tmp_path: Path) -> None:
    first = begun("a", tmp_path)
    runs.begin(runs.new_run("a", tmp_path), "text")
    assert runs.latest_run("a", tmp_path) == at(first.path)


def test_what_did_not_begin_is_withdrawn_and_what_began_stays(tmp_path: Path) -> None:
    run = runs.new_run("a", tmp_path)
    run.tensorboard.mkdir()
    runs.withdraw(run)
    assert not (tmp_path / "a").exists()
    runs.withdraw(run)  # nothing to do

    first = begun("a", tmp_path)
    runs.withdraw(first)
    second = runs.new_run("a", tmp_path)
    runs.withdraw(second)
    assert first.path.is_dir()
    assert not second.path.exists()


def test_without_a_run_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run of 'a' below .* run `lightning fit` with this config first"):
        runs.latest_run("a", tmp_path)


def test_checkpoints_of_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints/last.ckpt to continue from"):
        runs.last_checkpoint(run)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.ckpt").touch()
    assert runs.best_checkpoint(run) == runs.last_checkpoint(run) == folder / "last.ckpt"
    (folder / "best_feasible.ckpt").touch()
    assert runs.best_checkpoint(run) == folder / "best_feasible.ckpt"
    assert runs.last_checkpoint(run) == folder / "last.ckpt"


def test_the_run_of_a_checkpoint(tmp_path: Path) -> None:
    run = begun("a", tmp_path)
    assert runs.run_of(run.last_checkpoint) == run
    assert runs.run_of(tmp_path / "a" / "latest" / "checkpoints" / "last.ckpt") == run
    assert runs.run_of(run.path / "other" / "last.ckpt") is None
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
