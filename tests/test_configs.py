"""Every shipped config is understood, overlays change their own settings alone; what the networks promise."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from constrained_diffusion.cli import arguments, command
from constrained_diffusion.cli.runs import shipped_configs

SHIPPED = sorted(path.relative_to(shipped_configs()).as_posix() for path in shipped_configs().rglob("*.yaml"))
OVERLAYS = [name for name in SHIPPED if name.startswith("cluster/")]  # settings of the trainer, for over any config
WHOLE = [name for name in SHIPPED if name not in OVERLAYS]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def printed_config(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        command.main([*words, "--print_config"])
    assert stop.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def class_paths(config: Any) -> list[str]:
    if isinstance(config, dict):
        return [
            path for key, value in config.items() for path in ([value] if key == "class_path" else class_paths(value))
        ]
    return [path for value in config for path in class_paths(value)] if isinstance(config, list) else []


@pytest.mark.parametrize("name", WHOLE)
def test_every_shipped_config_is_understood(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config(["fit", "--config", name], capsys)
    for path in class_paths(config):
        module, _, cls = path.rpartition(".")
        assert callable(getattr(import_module(module), cls)), path  # a class, or a function that returns one's instance
    assert isinstance(config["seed_everything"], int)
    assert not isinstance(config["seed_everything"], bool)


@pytest.mark.parametrize("word", ["mnist.yaml", "mnist", "--config=mnist.yaml"])
def test_a_shipped_config_is_found_from_anywhere_and_one_word_changes_it(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word] if word.startswith("--") else ["--config", word]
    config = printed_config(
        ["fit", *words, "--model.init_args.constraints.init_args.label=7", "--trainer.callbacks.stop_below=0.5"], capsys
    )
    assert config["model"]["init_args"]["constraints"]["init_args"]["label"] == 7
    assert config["trainer"]["callbacks"][0]["init_args"]["stop_below"] == 0.5
    assert config["model"]["init_args"]["max_timestep"] == 700  # and nothing else


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("base", ["mnist.yaml", "dno_mnist.yaml"])
def test_an_overlay_changes_its_own_settings_and_nothing_else(
    base: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb = "predict" if base.startswith("dno") else "fit"
    alone = printed_config([verb, "--config", base], capsys)
    both = printed_config([verb, "--config", base, "--config", name], capsys)
    overlay = yaml.safe_load((shipped_configs() / name).read_text())
    assert overlay.keys() == {"trainer"}
    assert not overlay["trainer"].items() <= alone["trainer"].items()
    assert both == {**alone, "trainer": {**alone["trainer"], **overlay["trainer"]}}
    assert arguments.read([verb, "--config", base, "--config", name]).name == base.removesuffix(".yaml")


def network(name):
    """Build the UNet of a pretraining config without memory."""
    from diffusers import UNet2DModel

    config = yaml.safe_load((shipped_configs() / "pretrain" / name).read_text())
    settings = config["model"]["init_args"]["denoiser"]["init_args"]["network"]["init_args"]
    with torch.device("meta"):
        return UNet2DModel(**settings)


def test_the_paper_s_network_has_113_668_609_parameters():
    unet = network("mnist_paper.yaml")
    assert sum(p.numel() for p in unet.parameters()) == 113_668_609
    assert (unet.config.sample_size, unet.config.in_channels) == (32, 1)


def test_the_zoo_s_network_is_small():
    assert sum(p.numel() for p in network("mnist_denoiser.yaml").parameters()) < 3_000_000


def test_polygen_s_network_has_the_parameters_that_the_paper_counts_but_for_its_norms():
    """PolyGen prints 5,985,281; its version of Unet1D had group norms, whose biases the root mean square norms lack."""
    pytest.importorskip("denoising_diffusion_pytorch", reason="the extra `polymer` is not installed")
    from constrained_diffusion.domains.polymers.unet1d import Unet1D

    config = yaml.safe_load((shipped_configs() / "polymer_paper.yaml").read_text())
    settings = config["model"]["init_args"]["denoiser"]["init_args"]["network"]["init_args"]
    with torch.device("meta"):
        unet = Unet1D(**settings)
    norms = [p for name, p in unet.named_parameters() if ".block" in name and name.endswith("norm.g")]
    levels, middle, last = 2 * (2 * 2 * 128) + (2 * 2 * 256 + 2 * 2 * 128), 2 * 2 * 256, 2 * 128  # down and up
    assert sum(p.numel() for p in norms) == levels + middle + last == 3_840
    assert sum(p.numel() for p in unet.parameters()) + 3_840 == 5_985_281


@pytest.mark.parametrize("name", ["mnist_algorithm1.yaml", "mnist_paper.yaml"])
def test_table_1(name):
    config = yaml.safe_load((shipped_configs() / name).read_text())
    (scheduler,) = [c["init_args"] for c in config["trainer"]["callbacks"]]
    assert scheduler == {
        "initial": 0.05, "growth_factor": 1.2, "every_n_steps": 10, "max_iterations": 50, "stop_below": 0.01,
    }  # fmt: skip
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert (config["trainer"]["max_epochs"], data["batch_size"], data["samples"]) == (100, 128, 512)
    assert (model["max_timestep"], model["formulation"]) == (800, "algorithm1")
    assert (model["optimizer"]["init_args"]["lr"], model["constraints"]["init_args"]["threshold"]) == (3e-4, 0.1)
