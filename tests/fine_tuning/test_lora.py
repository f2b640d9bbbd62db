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
from safetensors.torch import load_file
from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.merging import merge_adapters
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.fine_tuning.lora import adapters_off, add_adapters, fingerprint
from constrained_diffusion.fine_tuning.loss import PenaltyLoss
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.networks import Networks
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


def test_a_checkpoint_holds_adapters_alone_and_goes_on_beside_the_same_weights(
    network: nn.Module, tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any, same: Any, tmp_path: Path
) -> None:
    def make(seed: int = 0, **settings: Any) -> ConstrainedDiffusion:
        given = {"constraints": too_bright(), "formulation": "penalty", "lora": SETTINGS, "optimizer": ADAM}
        torch.manual_seed(5)  # of the adapters' start
        return ConstrainedDiffusion(tiny_denoiser(seed), **{**given, **settings})

    whole, half = make(), make()
    fit(whole, tiny_data(), max_epochs=2)
    fit(half, tiny_data(), max_epochs=1).save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    of_networks = [name for name in state if name.startswith(("networks.denoiser.network.", "networks.ema."))]
    assert len(of_networks) == 12  # A and B of three layers, trained and averaged
    assert all(".lora_A." in name or ".lora_B." in name for name in of_networks)
    resumed = make()
    fit(resumed, tiny_data(), ckpt_path=str(tmp_path / "x.ckpt"), max_epochs=2)
    same(dict(resumed.networks.state_dict()), dict(whole.networks.state_dict()))
    torch.testing.assert_close(resumed.sample([0, 1], "pretrained"), make().sample([0, 1], "raw"))

    with pytest.raises(ValueError, match="adapters alone, and they were trained beside other weights"):
        fit(make(seed=1), tiny_data(), ckpt_path=str(tmp_path / "x.ckpt"), max_epochs=2)
    with pytest.raises(ValueError, match="the checkpoint is of another model"):
        fit(make(lora=None), tiny_data(), ckpt_path=str(tmp_path / "x.ckpt"), max_epochs=2)
    half.export(tmp_path / "present")
    half.export(tmp_path / "written", tmp_path / "x.ckpt")
    same(*(load_file(tmp_path / name / "model.safetensors") for name in ("present", "written")))


def test_the_average_has_adapters_of_its_own_and_shares_the_other_weights(network: nn.Module) -> None:
    schedule = VariancePreserving([0.9, 0.5])
    networks = Networks(Denoiser(network, schedule, sample_shape=(1, 8, 8)), 0.75, RANDOM)
    before = {name: value.clone() for name, value in networks.ema.named_parameters()}
    with torch.no_grad():
        for parameter in networks.trained.parameters():
            parameter.add_(1.0 if parameter.requires_grad else 0.0)
    networks.update_ema()
    for (name, average), parameter in zip(networks.ema.named_parameters(), networks.trained.parameters(), strict=True):
        assert (average is parameter) == ("lora_" not in name)
        torch.testing.assert_close(average, before[name] + (0.25 if "lora_" in name else 0.0))
    networks.to(torch.bfloat16)  # in which an average would not move
    kinds = {("lora_" in name, p.dtype) for name, p in networks.ema.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert {p.dtype for p in networks.trained.parameters()} == {torch.bfloat16}
    noisy = torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16)
    assert networks.denoiser.call(networks.ema, noisy, torch.tensor([1])).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"bias": "all"}, "also train time.*bias.*leave `bias` and `modules_to_save` out"),
        ({"target_modules": ["first"], "modules_to_save": ["last"]}, "also train last.*modules_to_save"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changes the weights beside the adapters"),
    ],
)
def test_settings_under_which_switching_off_is_not_the_frozen_model(
    network: nn.Module, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        add_adapters(network, {**SETTINGS, **settings})


def test_a_fingerprint_tells_weights_apart(tiny_denoiser: Any) -> None:
    network = tiny_denoiser().network
    assert fingerprint(network) == fingerprint(tiny_denoiser().network)
    with torch.no_grad():
        network.last.weight.add_(1e-6)
    assert fingerprint(network) != fingerprint(tiny_denoiser().network)


@pytest.mark.parametrize("targets", [["to_q"], "to_.*"])
def test_layers_that_are_not_there(network: nn.Module, targets: Any) -> None:
    with pytest.raises(ValueError, match=r"target_modules \(to_.*\) match nothing in a TinyNetwork: .* such as time\."):
        add_adapters(network, {"r": 2, "target_modules": targets})
    add_adapters(network, {"r": 2, "target_modules": ["to_q", "first"]})


def test_without_peft_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("lora"))):
        add_adapters(nn.Linear(1, 1), SETTINGS)
