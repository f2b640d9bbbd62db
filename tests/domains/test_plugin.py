"""A package that is not ours brings a domain by an entry point: fit, test and report, by bare class names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TONES = '''
"""Tones: waves of 16 values in [-1, 1], which shall not be loud."""

import torch
from torch import nn

from constrained_diffusion import Constraint, register
from constrained_diffusion.evaluation import Evaluation, Figure
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows
from constrained_diffusion.runtime.stored_networks import storable
from constrained_diffusion.statistics import ViolationRate


def loudness(clean):
    return clean.flatten(1).square().mean(1)


@register()
class QuietAtMost(Constraint):
    def __init__(self, limit: float, tolerance: float = 0.0) -> None:
        super().__init__(tolerance)
        self.limit = limit

    def forward(self, clean):
        return loudness(clean) - self.limit


class ToneEvaluation(Evaluation):
    subject = "clipped tones"
    figures = (
        Figure("peak_mean", "mean peak", "number", "less", headline=True),
        Figure("crossings", "zero crossings", "histogram"),
    )

    def __init__(self, clip: float = 0.9) -> None:
        super().__init__()
        self.clip, self.rate, self.peaks, self.crossings = clip, ViolationRate(), [], [0] * 16

    def update(self, clean):
        peaks = clean.abs().flatten(1).amax(1)
        self.rate.update(peaks > self.clip)
        self.peaks += peaks.tolist()
        for row in (clean[..., 1:] * clean[..., :-1] < 0).flatten(1).sum(1).tolist():
            self.crossings[row] += 1

    def compute(self):
        metrics = {"peak_mean": sum(self.peaks) / len(self.peaks), "crossings": self.crossings}
        return {**self.rate.compute(), "metrics": metrics}

    def reset(self):
        self.rate.reset()
        self.peaks, self.crossings = [], [0] * 16

    def marks(self, clean):
        return ["violation" if loud else "" for loud in (clean.abs().flatten(1).amax(1) > self.clip).tolist()]

    def pictures(self, clean):
        height = ((1 - clean[:, 0]) * 7.5).round().clamp(0, 15).long()
        return nn.functional.one_hot(height, 16).mT[:, None].float()


@storable
class ToneNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.settings = {"width": width}
        self.time = nn.Linear(1, width)
        self.into, self.out = nn.Conv1d(1, width, 3, padding=1), nn.Conv1d(width, 1, 3, padding=1)

    def forward(self, noisy, timesteps):
        shift = self.time(timesteps[:, None].to(noisy) / 100)[..., None]
        return self.out(nn.functional.silu(self.into(noisy) + shift))


class ToneData(DiffusionDataModule):
    def build(self):
        random = torch.Generator().manual_seed(0)
        phase, volume = torch.rand(2, 80, 1, 1, generator=random)
        tones = volume * torch.sin(torch.arange(16) / 2 + 6.28 * phase)
        return TensorRows(tones[:64]), TensorRows(tones[64:])
'''
CONFIG = """\
trainer:
  max_epochs: 1
  accelerator: cpu
  enable_progress_bar: false
  log_every_n_steps: 1
  callbacks:
    - class_path: PenaltyScheduler
      init_args: {initial: 0.5, stop_below: 0.0625}
model:
  class_path: ConstrainedDiffusion
  init_args:
    denoiser:
      class_path: Denoiser
      init_args:
        network: {class_path: ToneNet, init_args: {width: 4}}
        noise_schedule: {class_path: DiffusersSchedule, init_args: {config: {num_train_timesteps: 50}}}
        codec: {class_path: Normalizer, init_args: {mean: 0.0, std: 1.0, low: -1.0, high: 1.0}}
        sample_shape: [1, 16]
    constraints: {class_path: QuietAtMost, init_args: {limit: 0.2}}
    evaluation: {class_path: ToneEvaluation}
    formulation: penalty
    sampler: {steps: 3}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.001}}
data:
  class_path: ToneData
  init_args: {batch_size: 16, val_samples: 8, test_samples: 12}
"""
OPENED = """
from constrained_diffusion import PretrainedDenoiser
denoiser = PretrainedDenoiser("export")
print(type(denoiser.network).__module__, denoiser.network.settings, denoiser.sample_shape)
"""


@pytest.fixture(scope="module")
def plugged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on PYTHONPATH that holds the package and what an installer would have written of its entry point."""
    folder = tmp_path_factory.mktemp("plugged")
    (folder / "tones").mkdir()
    (folder / "tones" / "__init__.py").write_text(TONES)
    told = folder / "tones-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: tones\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[constrained_diffusion.domains]\ntones = tones\n")
    (folder / "tones.yaml").write_text(CONFIG)
    return folder


def run(folder: Path, *command: str) -> str:
    paths = [str(folder), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


def test_a_domain_of_another_package_fits_tests_and_reports_by_bare_names(plugged: Path) -> None:
    cli = ("-m", "constrained_diffusion.cli")
    fitted = run(plugged, *cli, "fit", "--config", "tones.yaml")
    assert "of the EMA samples violate by own g" in fitted
    assert "By the judge: clipped tones " in fitted
    assert "mean peak " in fitted
    tested = run(plugged, *cli, "test", "--config", "tones.yaml", "--ckpt_path", "last")
    for line in ("QuietAtMost, by its own g (upper 95 % bound)", "clipped tones, by the judge", "mean peak, less is"):
        assert line in tested
    [folder] = [path.parent for path in (plugged / "runs").rglob("results.json")]
    results = json.loads((folder / "results.json").read_text())
    assert results["after"]["constraints"]["QuietAtMost"]["n"] == 12
    assert results["subject"] == "clipped tones"
    page = (folder / "report.html").read_text()
    for part in ("mean peak", "zero crossings", "clipped tones", "tau = 0.0625", "<figcaption>after<"):
        assert part in page
    (plugged / "export").symlink_to(folder / "export")
    assert run(plugged, "-c", OPENED).split("\n")[-2] == "tones {'width': 4} (1, 16)"
