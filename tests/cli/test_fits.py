"""What a fit of the command line leaves: logs of every logger, and the state before it diverged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from constrained_diffusion.cli import command

LOGGER = """
from lightning.pytorch.loggers.logger import DummyLogger

class OwnLogger(DummyLogger):
    seen = {"rows": [], "config": [], "pictures": []}

    def log_metrics(self, metrics, step=None):
        self.seen["rows"].append(metrics)

    def log_hyperparams(self, params):
        self.seen["config"].append(params)

    def log_image(self, key, images, step=None):
        self.seen["pictures"].append((key, images[0].size))
"""


def test_loggers_of_ones_own_stand_beside_the_csv_file_and_get_everything(place: Path, tiny_config: str) -> None:
    (place / "own_logger.py").write_text(LOGGER)
    (place / "tiny.yaml").write_text(tiny_config.replace("max_epochs: 2", "max_epochs: 1"))
    quiet = "--trainer.enable_progress_bar=false"
    command.main(["fit", "--config", "tiny.yaml", "--trainer.logger=own_logger.OwnLogger", quiet])
    run = place / "runs" / "tiny" / "2"
    assert (run / "metrics.csv").read_text().count("\n") == 4  # a head, two steps, a validation
    assert not (run / "tensorboard").exists()
    seen = sys.modules.pop("own_logger").OwnLogger.seen
    assert any("loss/total" in row for row in seen["rows"])
    assert [key for key, _ in seen["pictures"]] == ["samples"]
    assert seen["pictures"][0][1][0] > 16 * 28
    (config,) = seen["config"]
    assert config["model"]["init_args"]["max_timestep"] == 80
    assert (
        yaml.safe_load((run / "hparams.yaml").read_text())
        == config
        == yaml.safe_load((run / "config.yaml").read_text())
    )


NAN_AT_STEP_5 = """
import torch
from constrained_diffusion import Constraint

class Breaks(Constraint):
    calls = 0

    def forward(self, clean):
        Breaks.calls += clean.grad_fn is not None  # in training steps
        return clean.flatten(1).mean(1) * (float("nan") if Breaks.calls >= 5 else 1.0)
"""


def test_a_diverged_fit_says_so_and_keeps_the_last_checkpoint(
    place: Path, tiny_config: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "breaking.py").write_text(NAN_AT_STEP_5)
    monkeypatch.syspath_prepend(place)
    start, end = tiny_config.index("    constraints:"), tiny_config.index("    sampler:")
    constraint = "    constraints: {class_path: breaking.Breaks}\n"
    (place / "tiny.yaml").write_text(tiny_config[:start] + constraint + tiny_config[end:])
    often = ["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_seconds=0"]
    with pytest.raises(SystemExit) as stop:
        command.main(["fit", "--config", "tiny.yaml", "--trainer.max_epochs=4", *often])  # of 2 steps each
    said = capfd.readouterr().err.splitlines()[-1]
    assert stop.value.code == 1
    assert said.startswith("error: diverged: the loss is nan at step 5 (not finite: ")
    assert "Breaks" in said
    assert "g is not finite, though the network's output is" in said
    run = place / "runs" / "tiny" / "2"
    status = yaml.safe_load((run / "status.json").read_text())
    assert (status["status"], status["step"]) == ("diverged", 5)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert all(bool(value.isfinite().all()) for value in last["state_dict"].values())
