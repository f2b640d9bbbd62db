"""What a checkpoint and an export hold, and what is refused."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from constrained_diffusion.callbacks import LastCheckpoint
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.steering import COEFFICIENTS

SGD = partial(torch.optim.SGD, lr=0.1)


def test_a_checkpoint_holds_no_judge_and_no_constraint(trained: Any, tmp_path: Path, too_bright: Any) -> None:
    class Learnt(too_bright):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(2, 2)

    _, trainer = trained(constraints=Learnt(), trainer={"max_steps": 1})
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[-1] for name in state if name.startswith("loss.")} == set(COEFFICIENTS)
    assert {".".join(name.split(".")[:2]) for name in state} == {"networks.denoiser", "networks.ema", "loss.steering"}


def test_a_checkpoint_of_an_earlier_layout_gets_one_sentence(
    trained: Any, tmp_path: Path, fit: Any, tiny_data: Any
) -> None:
    module, trainer = trained(trainer={"max_steps": 1})
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    checkpoint["state_dict"] = {k.removeprefix("networks."): v for k, v in checkpoint["state_dict"].items()}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match="written by an earlier version of this package.*export/"):
        fit(module, tiny_data(), ckpt_path=str(tmp_path / "old.ckpt"), max_steps=2)


def deeper(denoiser: Any) -> Any:
    denoiser.network.extra = nn.Linear(1, 1)
    return denoiser


@pytest.mark.parametrize("change", ["more layers", "fewer layers", "no constraint", "two constraints"])
def test_a_checkpoint_of_another_model_is_refused(
    trained: Any, tiny_denoiser: Any, too_bright: Any, tmp_path: Path, change: str
) -> None:
    big, small = {"denoiser": deeper(tiny_denoiser())}, {"denoiser": tiny_denoiser()}
    made, used = {
        "more layers": (small, big),
        "fewer layers": (big, small),
        "no constraint": ({"constraints": None}, {"constraints": too_bright()}),
        "two constraints": ({"constraints": [too_bright(), too_bright()]}, {"constraints": too_bright()}),
    }[change]
    _, trainer = trained(**made)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"the checkpoint is of another model: .* give the config that .* made with"):
        trained(**used, trainer={"ckpt_path": str(tmp_path / "x.ckpt"), "max_epochs": 3})


def test_the_export_is_the_ema_of_now_or_of_a_checkpoint(
    trained: Any, tiny_data: Any, tiny_denoiser: Any, fit: Any, tmp_path: Path
) -> None:
    module, _ = trained(trainer={"callbacks": [LastCheckpoint()], "enable_checkpointing": True, "max_epochs": 1})
    early = copy.deepcopy(module.networks.ema.state_dict())
    fit(module, tiny_data(), max_epochs=2)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    module.export(tmp_path / "now")
    module.export(tmp_path / "then", checkpoint)
    for name, expected in (("now", module.networks.ema.state_dict()), ("then", early)):
        read = PretrainedDenoiser(str(tmp_path / name), network=tiny_denoiser().network).network.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in read.items())
    assert not torch.equal(early["last.bias"], module.networks.ema.state_dict()["last.bias"])
    facts = json.loads((tmp_path / "now" / "training.json").read_text())
    assert facts["batches"] == 12
    assert facts["seed"] == 0


def test_hashes_tell_weights_apart(trained: Any) -> None:
    module, _ = trained()
    hashes = module.networks.weights_sha256()
    assert hashes["before"] != hashes["after"]
    with torch.no_grad():
        module.networks.ema.last.bias += 1e-6
    assert module.networks.weights_sha256()["after"] != hashes["after"]
    assert module.networks.weights_sha256()["before"] == hashes["before"]


def test_constraints_of_one_class_are_told_apart(tiny_denoiser: Any, too_bright: Any) -> None:
    class Dark(too_bright):  # type: ignore[misc]
        pass

    module = ConstrainedDiffusion(tiny_denoiser(), [too_bright(), Dark(), too_bright()])
    assert module.steering.names == ["TooBright_0", "Dark", "TooBright_2"]


def test_a_checkpoint_of_another_model(tiny_denoiser: Any, fit: Any, tiny_data: Any, tmp_path: Path) -> None:
    trainer = fit(ConstrainedDiffusion(tiny_denoiser(), optimizer=SGD), tiny_data())
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    wider = tiny_denoiser()
    wider.network.last = nn.Conv2d(8, 1, 5, padding=2)
    with pytest.raises(ValueError, match="the checkpoint is of another model"):
        fit(
            ConstrainedDiffusion(wider, optimizer=SGD),
            tiny_data(),
            ckpt_path=str(tmp_path / "other.ckpt"),
            max_epochs=3,
        )
