"""What the shipped configs promise about their networks."""

from __future__ import annotations

import pytest
import torch
import yaml

from constrained_diffusion.runs import shipped_configs


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
