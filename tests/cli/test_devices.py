"""One device unless more are asked for, and the same steps on any number of them, for every shipped config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch import distributed

from constrained_diffusion.cli import command, devices
from constrained_diffusion.cli.runs import shipped_configs
from constrained_diffusion.runtime.keyed_sampler import KeyedSampler

SHIPPED = sorted(path.relative_to(shipped_configs()).as_posix() for path in shipped_configs().rglob("*.yaml"))
WHOLE = [name for name in SHIPPED if not name.startswith("cluster/")]
FITS = [name for name in WHOLE if not name.startswith("dno_")]
FEW_ROWS = {"sd15_lora.yaml", "sdxl_lora.yaml", "sd3_lora.yaml", "flux_lora.yaml"}  #: so few that 8 devices have none


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


def config_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit):
        command.main([*words, "--print_config"])
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def trainer_of(config: dict[str, Any], **settings: Any) -> Trainer:
    names = ("accelerator", "devices", "num_nodes", "strategy")
    return Trainer(**{name: config["trainer"][name] for name in names}, logger=False, **settings)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.usefixtures("eight_gpus")
def test_a_shipped_config_takes_one_gpu_of_eight(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(config_of(["fit", "--config", name], capsys))
    assert (trainer.num_devices, trainer.world_size) == (1, 1)


@pytest.mark.parametrize("words", [["--trainer.devices=auto"], ["--config", "cluster/ddp.yaml"]])
@pytest.mark.usefixtures("eight_gpus")
def test_all_are_taken_when_asked_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert trainer_of(config_of(["fit", "--config", "mnist.yaml", *words], capsys)).num_devices == 8


@pytest.mark.usefixtures("eight_gpus")
def test_idle_gpus_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        devices.report_idle(Trainer(accelerator="gpu", devices=1, logger=False))
    assert "one of the 8 GPUs here is used; --trainer.devices=auto takes all of them." in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        devices.report_idle(Trainer(accelerator="gpu", devices=8, logger=False))
        devices.report_idle(Trainer(accelerator="cpu", devices=1, logger=False))
    assert "is used" not in caplog.text


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 1),
        ({"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4"}, 4),
        ({"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NAME": "fit"}, 8),
        ({"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NAME": "bash"}, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 1),
    ],
)
def test_a_launcher_says_how_many(variables: dict[str, str], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert devices.default_devices() == count


@pytest.mark.parametrize("name", FITS)
def test_a_shipped_config_makes_the_same_steps_on_any_number(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = config_of(["fit", "--config", name], capsys)["data"]["init_args"].get("batch_size", 128)
    steps = {}
    for world in (1, 2, 4, 8):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "is_initialized", lambda world=world: world > 1)
            patch.setattr(distributed, "get_world_size", lambda world=world: world)
            patch.setattr(distributed, "get_rank", lambda world=world: world - 1)
            if rows % world:
                with pytest.raises(ValueError, match=f"expected a multiple of {world} for {world} ranks, got {rows}"):
                    KeyedSampler(10 * rows + rows // 2, rows, seed=0)
                assert name in FEW_ROWS
                continue
            sampler = KeyedSampler(10 * rows + rows // 2, rows, seed=0)
            steps[world] = sampler.batches, sampler.share * world
    assert set(steps.values()) == {(10, rows)}
    assert len(steps) == 4 or name in FEW_ROWS
