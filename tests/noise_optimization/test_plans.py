"""Noise optimisation of plans: what an evaluation draws and measures of them lies in the run."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from constrained_diffusion.callbacks import NoiseReport, NoiseResults
from constrained_diffusion.datamodules import SeedsDataModule
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.domains.mazes.drawing import plan_overlays, plan_pictures
from constrained_diffusion.domains.mazes.layout import Maze
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.noise_optimization.module import DirectNoiseOptimization
from constrained_diffusion.objectives import Constraint, Feasibility, Reward
from constrained_diffusion.objectives.converters import WeightedSum
from constrained_diffusion.statistics import ViolationRate

MAZE, CENTRE, RADIUS = Maze.of("umaze"), torch.tensor([0.0, 1.0]), 0.8


class Zone(Constraint):
    """g = R - d of every point."""

    def forward(self, clean: Tensor) -> Tensor:
        return RADIUS - (points(clean) - CENTRE.to(clean)).square().sum(-1).sqrt()


class PlanJudge(Evaluation):
    """How many plans have a point in the zone; draws them."""

    overlays_legend = "Plans."

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.bound = ViolationRate(), []

    def bind(self, constraints: Any) -> None:
        self.bound = list(constraints)

    def inside(self, clean: Tensor) -> Tensor:
        return (points(clean) - CENTRE).norm(dim=-1).amin(1) < RADIUS

    def update(self, clean: Tensor) -> None:
        self.rate.update(self.inside(clean))

    def compute(self) -> dict[str, Any]:
        return {**self.rate.compute(), "metrics": {}}

    def reset(self) -> None:
        self.rate.reset()

    def marks(self, clean: Tensor) -> list[str]:
        return ["violation" if bad else "" for bad in self.inside(clean).tolist()]

    def pictures(self, clean: Tensor) -> Tensor:
        return plan_pictures(clean, MAZE, CENTRE[None], RADIUS)

    def overlays(self, clean: Tensor) -> dict[str, bytes]:
        return plan_overlays(clean, MAZE, CENTRE[None], RADIUS)


class Tiny(nn.Module):
    """Mixes the numbers of a plan a little."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(48, 48)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return 0.3 * self.layer(noisy.flatten(1)).reshape(noisy.shape)


def module(objective: Any, evaluation: Evaluation | None) -> DirectNoiseOptimization:
    schedule = VariancePreserving(torch.cos(torch.linspace(0.02, 1.5, 100)) ** 2)
    planner = Denoiser(Tiny(), schedule, Normalizer(low=-2.4, high=2.4), sample_shape=(6, 4, 2))
    return DirectNoiseOptimization(
        planner, objective, Sampler(steps=3, eta=1.0), evaluation=evaluation, steps=8, permutations=5,
        optimizer=partial(torch.optim.Adam, lr=0.2), typical_probability=0.0,
    )  # fmt: skip


def predict(folder: Path, given: DirectNoiseOptimization) -> Path:
    folder.mkdir()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[NoiseResults(), NoiseReport()],
    )  # fmt: skip
    trainer.predict(given, datamodule=SeedsDataModule(predict_samples=6, eval_batch_size=4), return_predictions=False)
    return folder


def shown(path: Path) -> Tensor:
    with Image.open(path) as image:
        data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return data.reshape(image.height, image.width, 3).permute(2, 0, 1)


def test_pictures_figures_and_report_of_plans(tmp_path: Path, capsys: Any) -> None:
    run = predict(tmp_path / "run", module(Zone(), PlanJudge()))
    kept = {path.stem: load_file(path) for path in sorted((run / "noise").iterdir())}
    assert len(kept) == 6
    inside = {}
    for folder, name in (("before", "before"), ("after", "sample")):
        clean = torch.stack([tensors[name] for tensors in kept.values()])
        pictures = (plan_pictures(clean, MAZE, CENTRE[None], RADIUS) * 255).round().to(torch.uint8)
        for key, picture in zip(kept, pictures, strict=True):
            assert torch.equal(shown(run / folder / f"{key}.png"), picture)
        assert (run / "overlays" / f"{folder}.png").read_bytes() == plan_overlays(clean, MAZE, CENTRE[None], RADIUS)[""]
        distance = (clean.flatten(1, 2)[..., :2] - CENTRE).norm(dim=-1)
        inside[folder] = float((distance < RADIUS).any(1).float().mean())
    assert inside["after"] < inside["before"]

    results = json.loads((run / "results.json").read_text())
    assert {side: results[side]["violation_rate"] for side in inside} == pytest.approx(inside)
    assert {side: results[side]["own_violation_rate"] for side in inside} == pytest.approx(inside)
    said = capsys.readouterr().out
    assert "violations, by the judge (upper 95 % bound)" in said
    assert "Zone, by its own g (upper 95 % bound)" in said
    assert "n = 6 samples each" in said
    page = (run / "report.html").read_text()
    parts = ("Before and after", "All samples in one picture", "Trajectories")
    places = [page.index(f"<h2>{part}</h2>") for part in parts]
    assert places == sorted(places)
    assert page.count("data:image/png") == 2 + 6
    strip = shown(run / "strips" / f"{min(kept)}.png")
    assert strip.shape[1] == 160
    assert strip.shape[2] % 160 == 0
    assert torch.equal(strip[:, :, :160], shown(run / "before" / f"{min(kept)}.png"))


def test_plans_without_an_evaluation_are_not_taken_for_images(tmp_path: Path) -> None:
    run = predict(tmp_path / "run", module(Zone(), None))
    assert len(list((run / "noise").iterdir())) == 6
    assert not [*run.rglob("*.png"), *run.glob("results.json"), *run.glob("overlays")]
    assert "<h2>Before and after</h2>" not in (run / "report.html").read_text()


def test_the_evaluation_is_bound_to_the_constraint_of_the_objective() -> None:
    class Far(Reward):
        def forward(self, clean: Tensor) -> Tensor:
            return clean.flatten(1).mean(1)

    zone = Zone()
    both = WeightedSum([Far(), Feasibility(zone)], [1.0, 10.0])
    for objective, bound in ((zone, [zone]), (Feasibility(zone), [zone]), (Far(), []), (both, [zone])):
        evaluation = PlanJudge()
        made = module(objective, evaluation)
        assert evaluation.bound == bound
        assert made.constraints == bound
