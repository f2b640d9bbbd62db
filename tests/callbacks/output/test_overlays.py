"""Pictures of all plans at once, when a test ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from constrained_diffusion.callbacks import Overlays, Report
from constrained_diffusion.domains.mazes.drawing import plan_overlays
from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.reports.overlays import overlays_section

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own use of torch
]
MAZE = Maze.of("umaze")


class Nothing(Evaluation):
    """Measures nothing, and draws no overlays."""

    def update(self, clean: Tensor) -> None:
        pass

    def compute(self) -> dict[str, Any]:
        return {}

    def reset(self) -> None:
        pass

    def marks(self, clean: Tensor) -> list[str]:
        return [""] * len(clean)


class Plans(Nothing):
    overlays_legend = "Plans."

    def overlays(self, clean: Tensor) -> dict[str, bytes]:
        return plan_overlays(clean, MAZE, [(0.0, 1.0)], 0.3, executed=points(clean) / 2)


class Still(Constraint):
    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1)


class Planner(LightningModule):
    """The smallest module with the interface that the callback speaks to."""

    def __init__(self, evaluation: Evaluation | None, constrained: bool = True) -> None:
        super().__init__()
        self.evaluation = evaluation
        self.steering = Steering([Still()] if constrained else [])
        self.calls: list[tuple[list[int], str]] = []

    def sample(self, seeds: Any, weights: str = "ema") -> Tensor:
        self.calls.append((list(seeds), weights))
        plans = torch.rand(len(seeds), 4, 3, 2, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
        return plans if weights == "ema" else -plans

    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass


@pytest.fixture
def tested(tmp_path: Path) -> Any:
    def run(model: Planner, *callbacks: Any) -> Path:
        trainer = Trainer(
            callbacks=list(callbacks), logger=False, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.test(model, DataLoader(TensorDataset(torch.ones(1, 1))), verbose=False)
        return tmp_path

    return run


def test_before_and_after_on_the_same_seeds(tested: Any) -> None:
    model = Planner(Plans())
    folder = tested(model, Overlays(samples=5), Report()) / "overlays"
    assert model.calls == [([0, 1, 2, 3, 4], "pretrained"), ([0, 1, 2, 3, 4], "ema")]
    names = ["after.png", "before.png", "executed_after.png", "executed_before.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for side, weights in (("before", "pretrained"), ("after", "ema")):
        clean = model.sample(range(5), weights)
        expected = plan_overlays(clean, MAZE, [(0.0, 1.0)], 0.3, executed=points(clean) / 2)
        assert (folder / f"{side}.png").read_bytes() == expected[""]
        assert (folder / f"executed_{side}.png").read_bytes() == expected["executed"]
    page = (folder.parent / "report.html").read_text()
    shown = [page.index(f"<figcaption>{name}<") for name in ("before", "after", "executed, before", "executed, after")]
    assert page.index("<h2>All samples in one picture</h2>") < shown[0]
    assert shown == sorted(shown)
    assert shown[-1] < page.index("<h2>Samples</h2>")


def test_a_pretraining_has_no_before(tested: Any) -> None:
    model = Planner(Plans(), constrained=False)
    folder = tested(model, Overlays(samples=2)) / "overlays"
    assert sorted(path.name for path in folder.iterdir()) == ["after.png", "executed_after.png"]
    assert model.calls == [([0, 1], "ema")]


@pytest.mark.parametrize("evaluation", [None, Nothing()])
def test_without_overlays_nothing_is_sampled(tested: Any, evaluation: Evaluation | None) -> None:
    model = Planner(evaluation)
    run = tested(model, Overlays(), Report())
    assert model.calls == []
    assert not (run / "overlays").exists()
    assert "<h2>All samples in one picture</h2>" not in (run / "report.html").read_text()


def test_a_file_that_is_no_picture_is_named_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "after.png").write_bytes(b"<script>alert(1)</script>")
    section = overlays_section(tmp_path, "Legend.")
    assert "after: after.png is no PNG file." in section
    assert "script" not in section
    assert overlays_section(tmp_path / "none", "Legend.") == ""


def test_at_least_one_sample() -> None:
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        Overlays(samples=0)
