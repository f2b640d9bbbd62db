from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from constrained_diffusion.datamodules import Maze2DDataModule
from constrained_diffusion.denoisers import PretrainedDenoiser
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.export import export
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.domains.mazes import zoo_entries as made
from constrained_diffusion.domains.mazes.forbidden_zones import tracking_margin
from constrained_diffusion.domains.mazes.planners import TransformerPlanner
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.runtime import assets, cards

pytest.importorskip("mujoco", reason="mujoco is not installed: plans are executed in it")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = TransformerPlanner((6, 5, 2), width=16, depth=1, heads=2, feedforward=16)
    schedule = DiffusersSchedule({"num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "sample"})
    folder = export(Denoiser(network, schedule, Normalizer([0.0, 0.0], [1.4, 1.3])), tmp_path / "export")
    (folder / "training.json").write_text(json.dumps({"seed": 0, "batches": 3}))
    return folder


def test_an_entry_holds_weights_statistics_and_a_card(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    short: Any = lambda **kwargs: Maze2DDataModule(steps=20_000, held_out=4, **kwargs)  # noqa: E731
    monkeypatch.setattr(made, "EXECUTED", 3)
    target = tmp_path / "maze2d_planner"
    target.mkdir()
    card = made.planner(target, exported, short, count=8)
    cards.write(card, target)
    assert cards.mismatches(target) == []
    found = json.loads((target / "statistics.json").read_text())
    assert 0.03 < found["step_p50"] < 0.04  # about 3.5 cells a second
    assert found["step_p50"] < found["step_p99"] < found["step_p999"] < found["step_max"] < 0.08
    assert found["tracking_p95"] > 0
    assert card.figures["executed_n"] == 3
    assert PretrainedDenoiser(str(target)).sample_shape == (6, 5, 2)


def test_the_zoos_planner_plans_through_the_maze() -> None:
    model = PretrainedDenoiser("maze2d_planner")
    assert (
        sum(p.numel() for p in model.parameters()) == cards.read(assets.path("maze2d_planner"))["figures"]["parameters"]
    )
    plans = made.draw(model, made.QUALITY, 8)
    steps = points(plans)[:, 10:-10].diff(dim=1).norm(dim=-1)
    statistics = json.loads((assets.path("maze2d_planner") / "statistics.json").read_text())
    assert steps.median() == pytest.approx(statistics["step_p50"], rel=0.2)
    assert tracking_margin() == statistics["tracking_p95"]
