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
from constrained_diffusion.evaluation import OwnViolations
from constrained_diffusion.fine_tuning.checkpoint import check_state, own_state
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.steering import COEFFICIENTS
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.objectives import Constraint

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


def test_a_checkpoint_leaves_the_autoencoder_out() -> None:
    state = {"networks.denoiser.codec.network.decoder.weight": 1, "networks.ema.weight": 2}
    assert own_state(state) == {"networks.ema.weight": 2}


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
    module, _ = trained(
        trainer={"callbacks": [LastCheckpoint(every_n_seconds=0)], "enable_checkpointing": True, "max_epochs": 1}
    )
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


class Judge(OwnViolations):
    """A judge with weights of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.judge = nn.Linear(width, 1)


class Steered(Guide):
    """Changes nothing, by a network of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, 1)

    def forward(self, predict: Any, denoiser: Any) -> Any:
        return predict


class Judged(Constraint):
    """g = -1 by a network of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, 1)

    def forward(self, clean: Any) -> Any:
        return clean.flatten(1).mean(1) - 2


def with_networks(width: int) -> dict[str, Any]:
    return {"evaluation": Judge(width), "guide": Steered(width), "constraints": Judged(width)}


def test_what_comes_from_files_of_its_own_is_neither_saved_nor_asked_for(trained: Any, tmp_path: Path) -> None:
    """The second fit has another judge, guide and classifier, whose weights another file may hold by now."""
    module, trainer = trained(**with_networks(2), trainer={"max_steps": 1})
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in module.state_dict()} == {"networks", "loss", "evaluation", "guide"}
    assert not [name for name in state if "judge" in name or "classifier" in name]
    again, _ = trained(**with_networks(3), trainer={"ckpt_path": str(tmp_path / "x.ckpt"), "max_steps": 2})
    assert again.batches_seen == 2


@pytest.mark.parametrize(
    "name", ["evaluation.judge.weight", "guide.classifier.weight", "loss.steering.constraints.0.w"]
)
def test_a_checkpoint_that_brings_weights_of_its_own_for_a_judge_is_refused(tiny_denoiser: Any, name: str) -> None:
    """Lightning loads what fits by its name, and the judge would be whatever the file says."""
    own = ConstrainedDiffusion(tiny_denoiser(), **with_networks(2)).state_dict()
    whole = {"state_dict": own_state(own), "batches_seen": 3}
    check_state(whole, own)
    with pytest.raises(ValueError, match=f"1 are missing, left over or of another shape .the first: {name}"):
        check_state({**whole, "state_dict": {**whole["state_dict"], name: torch.zeros(1, 2)}}, own)


def test_a_checkpoint_of_somebody_else_s_fit_is_refused(tiny_denoiser: Any) -> None:
    own = ConstrainedDiffusion(tiny_denoiser()).state_dict()
    with pytest.raises(ValueError, match="another model.*the first: batches_seen"):
        check_state({"state_dict": own_state(own)}, own)
