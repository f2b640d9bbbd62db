"""Tiny real components that many tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows


class TinyNetwork(nn.Module):
    """A convolution that knows the time: the smallest thing that denoises 8 x 8 images."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.time = nn.Linear(1, width)
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        shift = self.time(timesteps[:, None].to(noisy.dtype) / 100)[..., None, None]
        return self.last(torch.nn.functional.silu(self.first(noisy) + shift))


class TooBright(Constraint):
    """g = mean pixel - 0.4."""

    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1) - 0.4


class TinyData(DiffusionDataModule):
    """64 random 8 x 8 images, half of them bright."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"batch_size": 16, "val_samples": 8, "test_samples": 8, "eval_batch_size": 8, **kwargs})

    def build(self) -> tuple[TensorRows, TensorRows]:
        images = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        images[::2] *= 0.5
        return TensorRows(images[:64]), TensorRows(images[64:])


def make_denoiser(seed: int = 0, prediction_type: Any = "epsilon") -> Denoiser:
    """A fresh, always equal tiny denoiser with a schedule of 100 steps."""
    torch.manual_seed(seed)
    schedule = VariancePreserving(torch.cos(torch.linspace(0.02, 1.5, 100)) ** 2, prediction_type)
    return Denoiser(TinyNetwork(), schedule, sample_shape=(1, 8, 8))


@pytest.fixture(scope="session")
def tiny_denoiser() -> Any:
    """The factory `make_denoiser(seed=0, prediction_type="epsilon")`."""
    return make_denoiser


@pytest.fixture(scope="session")
def tiny_data() -> Any:
    """The class of the tiny data module."""
    return TinyData


@pytest.fixture
def too_bright() -> Any:
    """The class of the tiny constraint."""
    return TooBright


def same_state(a: Any, b: Any, where: str = "checkpoint") -> None:
    """Compare two checkpoints' contents, all the way down, bit by bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same_state(x, y, f"{where}[{i}]")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.fixture(scope="session")
def same() -> Any:
    """The function `same_state(a, b, where)`."""
    return same_state


TINY_CONFIG = """\
seed_everything: 0
trainer:
  max_epochs: 2
  accelerator: cpu
  callbacks:
    - class_path: PenaltyScheduler
      init_args: {initial: 0.05, growth_factor: 1.2, every_n_steps: 2, stop_below: 0.0}
  log_every_n_steps: 1
model:
  class_path: ConstrainedDiffusion
  init_args:
    denoiser:
      class_path: Denoiser
      init_args:
        network:
          class_path: diffusers.UNet2DModel
          init_args:
            sample_size: 28
            in_channels: 1
            out_channels: 1
            block_out_channels: [4, 8]
            layers_per_block: 1
            down_block_types: [DownBlock2D, DownBlock2D]
            up_block_types: [UpBlock2D, UpBlock2D]
            add_attention: false
            norm_num_groups: 4
        noise_schedule:
          class_path: DiffusersSchedule
          init_args:
            config: {num_train_timesteps: 100, beta_schedule: squaredcos_cap_v2, prediction_type: epsilon}
    constraints:
      class_path: ClassProbability
      init_args:
        classifier:
          class_path: PretrainedClassifier
          init_args: {source: mnist_classifier}
        label: 8
    evaluation:
      class_path: ClassEvaluation
      init_args:
        judge:
          class_path: PretrainedClassifier
          init_args: {source: mnist_classifier}
    sampler: {steps: 2}
    max_timestep: 80
data:
  class_path: GeneratedDataModule
  init_args:
    samples: 16
    held_out: 8
    batch_size: 8
    val_samples: 8
    test_samples: 8
    predict_samples: 4
    sampler: {steps: 2}
"""


@pytest.fixture(scope="session")
def run_program() -> Any:
    """`run_program(file, *arguments)`: run a program of a test, which may fork ranks, and return what it prints."""

    def run(program: Path, *arguments: Any) -> str:
        finished = subprocess.run(
            [sys.executable, str(program), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,  # on a busy machine; it needs seconds
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


@pytest.fixture(scope="session")
def tiny_config() -> str:
    """A whole config for the command line: a random UNet of diffusers on 28 x 28 images, seconds for everything."""
    return TINY_CONFIG


@pytest.fixture
def fit(tmp_path: Any) -> Any:
    """`fit(module, data, callbacks=(), ckpt_path=None, **trainer)`: a silent CPU fit; returns the trainer."""
    from lightning.pytorch import Trainer

    def run(module: Any, data: Any, callbacks: Any = (), ckpt_path: str | None = None, **settings: Any) -> Trainer:
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        defaults = {"accelerator": "cpu", "max_epochs": 2, "enable_checkpointing": False, "default_root_dir": tmp_path}
        trainer = Trainer(**{**quiet, **defaults, **settings}, callbacks=list(callbacks))
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture(scope="module")
def minari_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An empty folder where Minari keeps its data sets during the module's tests."""
    path = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(path))
        yield path
