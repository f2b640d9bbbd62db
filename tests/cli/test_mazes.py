"""The maze configs through the command line, with the zoo's planner and the smallest budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from constrained_diffusion.cli import command

pytest.importorskip("mujoco", reason="mujoco is not installed: plans are executed in it")
DATA = "--data.init_args"
LITTLE = [f"{DATA}.samples=48", f"{DATA}.held_out=4", f"{DATA}.batch_size=4", f"{DATA}.val_samples=4"]
FEW = ["--model.init_args.sampler.steps=4", f"{DATA}.test_samples=6", "--model.init_args.evaluation.executed=2"]
SHORT = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", f"{DATA}.sampler.steps=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("mazes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(root / "cache"))
        patch.delenv("CONSTRAINED_DIFFUSION_RUNS", raising=False)
        yield root


@pytest.mark.parametrize("name", ["maze2d", "maze2d_goal"])
def test_fit_and_test_draw_the_maze_and_execute_plans(name: str, folder: Path) -> None:
    command.main(["fit", "--config", f"{name}.yaml", *LITTLE, *SHORT, *FEW])
    command.main(["test", "--config", f"{name}.yaml", *LITTLE, *FEW, f"{DATA}.sampler.steps=8"])
    run = folder / "runs" / name / "latest"
    results = json.loads((run / "results.json").read_text())
    for side in ("before", "after"):
        measured = results[side]
        assert measured["n"] == 6
        assert measured["metrics"]["executed_n"] == 2
        assert 0 <= measured["metrics"]["wall_collision_rate"] <= 1
        assert (measured["metrics"]["goal_reached_rate"] is not None) == (name == "maze2d_goal")
        with Image.open(run / "overlays" / f"{side}.png") as picture:
            assert min(picture.size) > 300
        assert (run / "overlays" / f"executed_{side}.png").is_file()
    if name == "maze2d_goal":  # held
        assert results["after"]["metrics"]["goal_at_end_rate"] == 1
    assert "All plans of the same seeds" in (run / "report.html").read_text()
    assert (run / "export" / "config.json").is_file()


def test_noise_optimisation_draws_and_judges_plans(folder: Path) -> None:
    few = [f"{DATA}.predict_samples=2", "--model.init_args.steps=2", "--model.init_args.sampler.steps=3"]
    command.main(["predict", "--config", "dno_maze2d.yaml", *few])
    run = folder / "runs" / "dno_maze2d" / "latest"
    results = json.loads((run / "results.json").read_text())
    assert results["before"]["n"] == results["after"]["n"] == 2
    assert sorted(path.name for path in (run / "after").iterdir()) == ["seed-000000.png", "seed-000001.png"]
    assert "All plans of the same seeds" in (run / "report.html").read_text()


def test_zones_that_leave_no_room_are_refused_before_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model.init_args.constraints.init_args.centres=[[-0.5, 0.5]]"
    with pytest.raises(SystemExit) as stop:
        command.main(["fit", "--config", "maze2d.yaml", words, "--model.init_args.constraints.init_args.radius=0.6"])
    assert stop.value.code == 2
    assert "infeasible" in capsys.readouterr().err


def test_a_goal_in_a_wall_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["fit", "--config", "maze2d_goal.yaml", "--model.init_args.guide.init_args.goal=[0.5, 2.5]"])
    assert stop.value.code == 2
    assert "lies in a wall" in capsys.readouterr().err
