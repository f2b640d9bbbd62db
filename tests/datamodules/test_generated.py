"""The fine-tuning set drawn from the model itself: what is drawn, when it is drawn again, and what stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from constrained_diffusion.datamodules import generated
from constrained_diffusion.datamodules.generated import FIRST_SEED, GeneratedDataModule, default_cache, with_stand_ins
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.objectives import Constraint
from constrained_diffusion.runtime import assets
from constrained_diffusion.runtime.data import TensorRows

SAMPLER = Sampler(steps=3)
Attach = Callable[..., tuple[ConstrainedDiffusion, GeneratedDataModule]]


@pytest.fixture
def attach(tiny_denoiser: Any, too_bright: Any, fit: Any, tmp_path: Path) -> Attach:
    """A factory of a module and its data, both attached to a trainer whose fit has taken no step yet."""

    def make(
        denoiser: Any = None, module: Any = None, **settings: Any
    ) -> tuple[ConstrainedDiffusion, GeneratedDataModule]:
        module = module or ConstrainedDiffusion(
            denoiser or tiny_denoiser(), too_bright(), optimizer=partial(torch.optim.SGD, lr=0.1)
        )
        defaults = {"samples": 24, "held_out": 8, "batch_size": 8, "sampler": SAMPLER, "cache_dir": str(tmp_path / "c")}
        data = GeneratedDataModule(**{**defaults, **settings})
        fit(module, data, max_steps=0)
        return module, data

    return make


def test_the_set_is_what_the_pretrained_model_draws(attach: Attach) -> None:
    module, data = attach(eval_batch_size=5)
    drawn = module.sample(range(FIRST_SEED, FIRST_SEED + 32), "pretrained", SAMPLER)
    train, held_out = data.data
    torch.testing.assert_close(train.clean, drawn[:24])
    torch.testing.assert_close(held_out.clean, drawn[24:])
    assert data.sample_shape == (1, 8, 8)


def test_a_module_that_cannot_be_fitted_is_refused_before_anything_is_drawn(
    attach: Attach, tiny_denoiser: Any, too_bright: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(GeneratedDataModule, "_draw")
    constraint = too_bright()
    constraint.differentiable = False
    with pytest.raises(ValueError, match="is not differentiable"):
        attach(module=ConstrainedDiffusion(tiny_denoiser(), constraint))


def test_no_sample_of_the_evaluation_is_in_the_set(attach: Attach) -> None:
    module, data = attach()
    evaluated = module.sample(range(24), "raw", SAMPLER)
    nearest = (data.data[0].clean[:, None] - evaluated[None]).flatten(2).norm(dim=2).min()
    assert nearest > 0.01


def test_the_set_is_drawn_once_and_kept(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = attach()
    assert load_file(first.cache_file())["drawn"].shape == (32, 1, 8, 8)
    assert list(first.cache_file().parent.iterdir()) == [first.cache_file()]  # the ranks' shares are gone
    monkeypatch.delattr(GeneratedDataModule, "_draw")
    _, second = attach()
    assert torch.equal(first.data[0].clean, second.data[0].clean)


@pytest.fixture
def beside(tmp_path: Path, tiny_denoiser: Any) -> Any:
    """`beside(**told)`: a denoiser whose folder holds 40 white samples to train on, and a card that says so."""

    def make(**told: Any) -> Any:
        denoiser = tiny_denoiser()
        denoiser.folder = tmp_path
        assets.write_sheet(torch.ones(40, 1, 8, 8), tmp_path / "training.png")
        how = {"sampler": asdict(SAMPLER.of(denoiser.noise_schedule)), "precision": "32-true", "first_seed": FIRST_SEED}
        card = {"training_samples": {**how, "count": 40, "size": 8, **told}}
        (tmp_path / "card.json").write_text(json.dumps(card))
        return denoiser

    return make


def test_samples_beside_the_weights_are_not_drawn_again(
    attach: Attach, beside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(GeneratedDataModule, "_draw")
    _, data = attach(beside())
    train, held_out = data.data
    assert (len(train), len(held_out), float(train.clean.min())) == (24, 8, 1.0)


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ({"precision": "bf16-mixed"}, {}),
        ({"first_seed": 0}, {}),
        ({"count": 31}, {}),
        ({}, {"sampler": Sampler(steps=4)}),
        ({}, {"first_seed": 5}),
        ({}, {"samples": 33}),
    ],
)
def test_samples_that_were_drawn_otherwise_are_not_taken(
    attach: Attach, beside: Any, told: dict[str, Any], settings: dict[str, Any]
) -> None:
    _, data = attach(beside(**told), **settings)
    assert float(data.data[0].clean.min()) < 0.9


def test_stand_ins_and_filters_do_not_go_together(too_bright: Any) -> None:
    for settings in ({"only_feasible": True}, {"filters": too_bright()}):
        with pytest.raises(ValueError, match="choose one of the two"):
            GeneratedDataModule(stand_ins=2, **settings)


def test_a_fit_does_not_change_its_own_set(tiny_denoiser: Any, too_bright: Any, fit: Any, tmp_path: Path) -> None:
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), optimizer=partial(torch.optim.SGD, lr=0.1))
    before = module.sample([FIRST_SEED], "raw", SAMPLER)
    data = GeneratedDataModule(samples=16, held_out=8, batch_size=8, sampler=SAMPLER, cache_dir=str(tmp_path))
    fit(module, data, max_epochs=3)
    torch.testing.assert_close(data.data[0].clean[:1], before)
    assert not torch.allclose(module.sample([FIRST_SEED], "raw", SAMPLER), before)


def other_weights(denoiser: Any) -> Any:
    with torch.no_grad():
        denoiser.network.last.bias += 1e-6
    return denoiser


def other_schedule(denoiser: Any) -> Any:
    denoiser.noise_schedule.alphas_cumprod *= 0.999
    return denoiser


def other_units(denoiser: Any) -> Any:
    denoiser.codec = Normalizer(0.5, 0.5, low=0.0, high=2.0)
    return denoiser


@pytest.mark.parametrize("change", [other_weights, other_schedule, other_units])
def test_another_model_never_meets_old_samples(attach: Attach, tiny_denoiser: Any, change: Any) -> None:
    (_, one), (_, other) = attach(), attach(change(tiny_denoiser()))
    assert one.cache_file() != other.cache_file()
    assert not torch.equal(one.data[0].clean, other.data[0].clean)


@pytest.mark.parametrize(
    "setting",
    [{"sampler": Sampler(steps=4)}, {"sampler": Sampler(steps=3, eta=0.5)}, {"first_seed": 7}, {"samples": 25},
     {"precision": "bf16-mixed"}],
)  # fmt: skip
def test_another_setting_never_meets_old_samples(attach: Attach, fit: Any, setting: dict[str, Any]) -> None:
    module, one = attach()
    precision = setting.pop("precision", "32-true")
    other = GeneratedDataModule(**{"samples": 24, "held_out": 8, "batch_size": 8, "sampler": SAMPLER,
                                   "cache_dir": str(one.cache_dir), **setting})  # fmt: skip
    fit(module, other, max_steps=0, precision=precision)
    assert one.cache_file() != other.cache_file()


def test_only_the_feasible_part(attach: Attach, tiny_denoiser: Any, too_bright: Any) -> None:
    _, everything = attach()
    brightness = everything.data[0].clean.flatten(1).mean(1)
    kept = brightness <= brightness.median() + 1e-4
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright(tolerance=float(brightness.median()) - 0.4 + 1e-4))
    _, feasible = attach(module=module, only_feasible=True)
    assert kept.sum() == 12
    assert torch.equal(feasible.data[0].clean, everything.data[0].clean[kept])
    assert torch.equal(feasible.data[1].clean, everything.data[1].clean)  # the held-out rows are the same for both


def test_a_killed_draw_leaves_no_half_file(attach: Attach, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(generated, "save_file", cut)
    with pytest.raises(KeyboardInterrupt):
        generated._write(tmp_path / "generated" / "x.safetensors", {"drawn": torch.zeros(1)})
    assert not (tmp_path / "generated" / "x.safetensors").exists()


@pytest.mark.parametrize("setting", [{"samples": 0}, {"held_out": 0}])
def test_an_empty_set_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected at least one sample and one held-out sample, got"):
        GeneratedDataModule(**setting)


def test_without_a_trainer_there_is_nothing_to_draw_from() -> None:
    with pytest.raises(RuntimeError, match=r"pass it to Trainer.fit"):
        _ = GeneratedDataModule().sample_shape


def test_the_environment_names_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(tmp_path))
    assert GeneratedDataModule().cache_dir == default_cache() == tmp_path
    monkeypatch.delenv("CONSTRAINED_DIFFUSION_CACHE")
    assert default_cache() == Path.home() / ".cache" / "constrained_diffusion"


class Dimmer(Guide):
    """Halves every predicted clean sample."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = factor

    def extra_repr(self) -> str:
        return f"factor={self.factor}"

    def forward(self, predict: Any, denoiser: Any) -> Any:
        def dimmed(noisy: torch.Tensor, timesteps: torch.Tensor) -> Prediction:
            _, noise, clean = predict(noisy, timesteps)
            clean = self.factor * clean
            return Prediction(denoiser.noise_schedule.from_clean(clean, noisy, timesteps), noise, clean)

        return dimmed


def test_a_guide_steers_the_drawing_and_nothing_else(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = attach(guide=Dimmer())
    seeds = range(FIRST_SEED, FIRST_SEED + 24)
    assert torch.allclose(data.data[0].clean, module.sample(seeds, "pretrained", SAMPLER, Dimmer()), atol=1e-6)
    assert not torch.allclose(data.data[0].clean, module.sample(seeds, "pretrained", SAMPLER), atol=0.1)
    names = {data.cache_file(), attach(guide=Dimmer(0.25))[1].cache_file(), attach()[1].cache_file()}
    assert len(names) == 3

    def refuse(self: Dimmer, shape: tuple[int, ...]) -> None:
        raise ValueError(f"Dimmer expects colours, got {shape}.")

    monkeypatch.setattr(Dimmer, "check_data", refuse)
    monkeypatch.delattr(GeneratedDataModule, "_draw")
    with pytest.raises(ValueError, match=r"Dimmer expects colours, got \(1, 8, 8\)"):
        attach(guide=Dimmer(0.75))


class NotTooDark(Constraint):
    """The mean pixel is at least 0.45."""

    def forward(self, clean: torch.Tensor) -> torch.Tensor:
        return 0.45 - clean.mean((1, 2, 3))


def test_filters_narrow_the_set_and_not_the_fit(attach: Attach) -> None:
    whole, module = attach()[1].data[0].clean, attach(filters=NotTooDark())[0]
    bright = whole.mean((1, 2, 3)) >= 0.45
    assert 8 < int(bright.sum()) < 24
    _, data = attach(filters=[NotTooDark()])
    assert torch.equal(data.data[0].clean, whole[bright])
    assert data.cache_file() == attach()[1].cache_file()  # what is drawn is the same
    assert [type(constraint).__name__ for constraint in module.steering.constraints] == ["TooBright"]


# ---------------------------------------------------------------- stand-ins


def asked_rows() -> TensorRows:
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    return TensorRows(torch.arange(7.0)[:, None], {"class_labels": labels}, latent=torch.arange(7.0)[:, None] + 10)


def test_an_infeasible_row_gets_stand_ins_of_its_own_condition() -> None:
    feasible = torch.tensor([True, False, True, True, True, True, False])
    rows = with_stand_ins(asked_rows(), feasible, 2, 0)
    assert rows.clean.flatten().tolist() == [*range(7), 0, 0, 5, 5]
    assert rows.latent is not None
    assert rows.latent.flatten().tolist() == [10 + value for value in rows.clean.flatten().tolist()]
    assert rows.condition is not None
    assert rows.teacher is not None
    assert rows.condition["class_labels"].tolist() == rows.teacher["class_labels"].tolist()


@pytest.mark.parametrize("mixed", [False, True])
def test_a_condition_without_feasible_rows_takes_them_from_one_other_or_from_all(mixed: bool) -> None:
    feasible = torch.tensor([False, False, True, True, True, True, True])
    rows = with_stand_ins(asked_rows(), feasible, 50, 0, mixed)
    assert rows.condition is not None
    assert rows.teacher is not None
    told, teacher = rows.condition["class_labels"][7:], rows.teacher["class_labels"][7:]
    assert told.tolist() == [0] * 100
    assert set(teacher.tolist()) == ({1, 2} if mixed else {1})  # 1 has most of them
    assert set(rows.clean[7:].flatten().tolist()) == ({2.0, 3.0, 4.0, 5.0, 6.0} if mixed else {2.0, 3.0, 4.0})
    again = with_stand_ins(asked_rows(), feasible, 50, 0, mixed)
    other = with_stand_ins(asked_rows(), feasible, 50, 1, mixed)
    assert torch.equal(rows.clean, again.clean)
    assert not torch.equal(rows.clean, other.clean)


def test_stand_ins_need_conditions_and_a_feasible_row() -> None:
    with pytest.raises(ValueError, match="nothing was asked for: give `conditions`"):
        with_stand_ins(TensorRows(torch.zeros(2, 1)), torch.tensor([True, False]), 1, 0)
    with pytest.raises(ValueError, match="no sample is feasible"):
        with_stand_ins(asked_rows(), torch.zeros(7, dtype=torch.bool), 1, 0)
    with pytest.raises(ValueError, match="stand_ins is a number of samples, at least 0, got -1"):
        GeneratedDataModule(stand_ins=-1)
