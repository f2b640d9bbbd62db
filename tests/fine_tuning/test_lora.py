"""Adapters: what is trained, what switching them off means, and what a merged network computes."""

from __future__ import annotations

import copy
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.fine_tuning.lora import adapters_off, add_adapters, merge_adapters
from constrained_diffusion.fine_tuning.loss import PenaltyLoss
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.runtime.distribution import install_hint

SETTINGS = {"r": 2, "target_modules": ["first", "last", "time"]}
RANDOM = {**SETTINGS, "init_lora_weights": False}
ADAM = partial(torch.optim.Adam, lr=1e-2)
Pair = tuple[Tensor, Tensor]


@pytest.fixture
def inputs() -> Pair:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 50, 99])


@pytest.fixture
def network(tiny_denoiser: Any) -> nn.Module:
    pytest.importorskip("peft", reason="peft is not installed")
    network: nn.Module = tiny_denoiser().network
    return network


def test_adapters_alone_are_trained(network: nn.Module) -> None:
    add_adapters(network, SETTINGS)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(trained) == 6  # A and B of three layers
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


def test_off_is_the_network_as_it_was(network: nn.Module, inputs: Pair) -> None:
    expected = network(*inputs)
    add_adapters(network, RANDOM)
    changed = network(*inputs)
    assert not torch.allclose(changed, expected)
    with adapters_off(network):
        torch.testing.assert_close(network(*inputs), expected)
    torch.testing.assert_close(network(*inputs), changed)
    assert all(parameter.requires_grad for name, parameter in network.named_parameters() if "lora_" in name)


def test_they_are_on_again_after_an_error(network: nn.Module, inputs: Pair) -> None:
    add_adapters(network, RANDOM)
    expected = network(*inputs)
    with pytest.raises(ZeroDivisionError), adapters_off(network):
        _ = 1 / 0
    torch.testing.assert_close(network(*inputs), expected)


def test_merged_weights_compute_the_same_without_any_adapter(network: nn.Module, inputs: Pair) -> None:
    names = set(network.state_dict())
    add_adapters(network, RANDOM)
    expected = network(*inputs)
    merged = merge_adapters(copy.deepcopy(network))
    assert set(merged.state_dict()) == names
    torch.testing.assert_close(merged(*inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_fit_with_adapters(
    network: nn.Module, tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any, tmp_path: Path, inputs: Pair
) -> None:
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), "penalty", lora=SETTINGS, optimizer=ADAM)
    pretrained = ConstrainedDiffusion(tiny_denoiser()).sample([0, 1], "raw")
    base = {name: value.clone() for name, value in module.denoiser.network.state_dict().items() if "lora_" not in name}
    data = tiny_data()
    trainer = fit(module, data)
    now = module.denoiser.network.state_dict()
    assert all(torch.equal(now[name], value) for name, value in base.items())
    assert any(value.abs().max() > 0 for name, value in now.items() if "lora_B" in name)  # they start at zero
    torch.testing.assert_close(module.sample([0, 1], "pretrained"), pretrained)
    assert not torch.allclose(module.sample([0, 1], "raw"), pretrained)
    assert not torch.allclose(module.sample([0, 1], "ema"), pretrained)

    trainer.test(module, datamodule=data, verbose=False)
    assert module.evaluator.results["before"]["n"] == 8

    trainer.save_checkpoint(tmp_path / "x.ckpt")
    resumed = ConstrainedDiffusion(tiny_denoiser(), too_bright(), "penalty", lora=SETTINGS, optimizer=ADAM)
    fit(resumed, tiny_data(), ckpt_path=str(tmp_path / "x.ckpt"), max_epochs=2)
    torch.testing.assert_close(resumed.sample([0, 1]), module.sample([0, 1]))

    module.export(tmp_path / "export")
    read = PretrainedDenoiser(str(tmp_path / "export"), network=tiny_denoiser().network)
    torch.testing.assert_close(read.network(*inputs), module.networks.ema(*inputs), rtol=1e-4, atol=1e-5)


def test_the_frozen_model_of_an_anchored_fit_is_the_network_without_adapters(
    network: nn.Module, tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any
) -> None:
    """Adapters start at zero, so that the first step's loss on feasible rows is zero too."""
    seen: list[float] = []

    class WatchedLoss(PenaltyLoss):
        def diffusion_loss(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().diffusion_loss(*args, **kwargs)
            seen.append(float(loss.detach()))
            return loss

    class Watched(ConstrainedDiffusion):
        loss_class = WatchedLoss

    module = Watched(tiny_denoiser(), too_bright(), "anchored_algorithm1", lora=SETTINGS, optimizer=ADAM)
    fit(module, tiny_data())
    assert seen[0] == 0.0
    assert seen[-1] > 0.0
    assert not module.networks._frozen  # no second copy of the weights


def test_layers_that_are_not_there(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="to_q"):
        add_adapters(network, {"r": 2, "target_modules": ["to_q"]})


def test_without_peft_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("lora"))):
        add_adapters(nn.Linear(1, 1), SETTINGS)
