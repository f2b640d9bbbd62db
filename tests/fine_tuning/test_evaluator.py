"""Sampling, measuring, keeping: against samples drawn by other modules and figures counted by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.batch import Batch
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.fine_tuning.loss import MinSNR
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.steering import Steering
from constrained_diffusion.guides.base import Guide
from constrained_diffusion.objectives import Constraint, StepRecord
from constrained_diffusion.runtime import assets
from constrained_diffusion.runtime.randomness import keyed_normal

ADAM = partial(torch.optim.Adam, lr=1e-2)
SAMPLER = Sampler(steps=4)


class MeanBrightness(Evaluation):
    """The share of samples brighter than 0.5, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def update(self, clean: Tensor) -> None:
        self.means += clean.flatten(1).mean(1).tolist()

    def compute(self) -> dict[str, Any]:
        bright = [mean > 0.5 for mean in self.means]
        metrics = {"brightness": sum(self.means) / len(self.means)}
        return {
            "violation_rate": sum(bright) / len(bright),
            "violation_upper_95": 1.0,
            "n": len(bright),
            "metrics": metrics,
        }

    def reset(self) -> None:
        self.means = []

    def marks(self, clean: Tensor) -> list[str]:
        return [""] * len(clean)

    def compare(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        after["metrics"]["brighter"] = after["metrics"]["brightness"] - before["metrics"]["brightness"]


class NoGuidance(Guide):
    """Changes nothing, which nobody can know."""

    def forward(self, predict: Any, denoiser: Any) -> Any:
        return predict


def drawn_by(weights: nn.Module, denoiser: Any, seeds: Any) -> Tensor:
    """What a fresh module that was born with these weights draws."""
    denoiser.network.load_state_dict(weights.state_dict())
    return ConstrainedDiffusion(denoiser, sampler=SAMPLER).sample(seeds, "raw")


def test_each_kind_of_weights_draws_its_own_samples(trained: Any, tiny_denoiser: Any) -> None:
    module, _ = trained()
    seeds, fresh = [0, 5, 9], tiny_denoiser()
    torch.testing.assert_close(module.sample(seeds, "pretrained"), drawn_by(fresh.network, fresh, seeds))
    torch.testing.assert_close(module.sample(seeds, "raw"), drawn_by(module.denoiser.network, tiny_denoiser(), seeds))
    torch.testing.assert_close(module.sample(seeds, "ema"), drawn_by(module.networks.ema, tiny_denoiser(), seeds))
    torch.testing.assert_close(module.sample(seeds), module.sample(seeds, "ema"))
    kinds = [module.sample(seeds, weights) for weights in ("pretrained", "raw", "ema")]
    assert all((kinds[i] - kinds[j]).abs().max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sample_depends_on_its_own_seed_alone(trained: Any, eta: float) -> None:
    module, _ = trained(sampler=Sampler(steps=4, eta=eta))
    together = module.sample([3, 1, 4, 1])
    torch.testing.assert_close(together, torch.cat([module.sample([seed]) for seed in (3, 1, 4, 1)]))
    torch.testing.assert_close(together[1], together[3])
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_samples_are_in_the_units_of_the_data_and_leave_no_trace(trained: Any) -> None:
    module, _ = trained()
    module.denoiser.network.train()
    samples = module.sample(range(16), "raw")
    assert samples.shape == (16, 1, 8, 8)
    assert 0 <= samples.min() < samples.max() <= 1
    assert not samples.requires_grad
    assert module.denoiser.network.training
    assert not module.networks.ema.training


def test_samples_are_in_the_range_of_the_data_where_steps_are_not_clipped(tiny_denoiser: Any) -> None:
    samples = ConstrainedDiffusion(tiny_denoiser(), sampler=Sampler(3, clip_sample=False)).sample(range(8))
    assert samples.min() >= 0
    assert samples.max() <= 1


def test_another_sampler_may_be_given(trained: Any) -> None:
    module, _ = trained()
    other = module.sample([0], sampler=Sampler(steps=7))
    assert not torch.allclose(other, module.sample([0]))
    module.evaluator.sampler = Sampler(steps=7)
    torch.testing.assert_close(module.sample([0]), other)


def rows(count: int) -> Batch:
    clean = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return Batch(clean, rows=torch.arange(10, 10 + count))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_held_out_loss_by_hand(tiny_denoiser: Any, prediction_type: str) -> None:
    module = ConstrainedDiffusion(tiny_denoiser(prediction_type=prediction_type), seed=3)
    clean = rows(6).clean * 2 - 1
    noise = keyed_normal([(3, 2, row) for row in range(10, 16)], (1, 8, 8))
    golden = (5**0.5 - 1) / 2
    t = torch.tensor([int(100 * (row * golden % 1)) for row in range(10, 16)])
    abar = module.denoiser.noise_schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    target = {"epsilon": noise, "sample": clean, "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * clean}
    squared = (module.networks.ema(noisy, t) - target[prediction_type]).square()
    torch.testing.assert_close(module.held_out_loss(rows(6)), squared.mean())
    module.loss.loss_weight = MinSNR(5.0, 0.1)  # then it is weighted as the training is
    snr = abar / (1 - abar)
    weight = snr.clamp(0.1, 5) / {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[prediction_type]
    torch.testing.assert_close(module.held_out_loss(rows(6)), (weight * squared).mean())


def test_the_held_out_loss_has_fixed_noise_per_row_and_uses_the_ema(tiny_denoiser: Any) -> None:
    module = ConstrainedDiffusion(tiny_denoiser())
    whole, batch = module.held_out_loss(rows(8)), rows(8)
    assert torch.equal(whole, module.held_out_loss(rows(8)))
    assert batch.rows is not None
    halves = [module.held_out_loss(Batch(batch.clean[i : i + 4], rows=batch.rows[i : i + 4])) for i in (0, 4)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)
    with torch.no_grad():
        module.denoiser.network.get_parameter("last.bias").add_(1)
    assert torch.equal(module.held_out_loss(rows(8)), whole)
    with torch.no_grad():
        module.networks.ema.get_parameter("last.bias").add_(1)
    assert not torch.equal(module.held_out_loss(rows(8)), whole)


def test_validation_measures_the_ema_samples(trained: Any, tiny_data: Any) -> None:
    data = tiny_data(val_samples=20)
    module, trainer = trained(data, evaluation=MeanBrightness())
    brightness = module.sample(range(20)).flatten(1).mean(1)
    logged = trainer.callback_metrics
    assert float(logged["val/own_violation_rate"]) == pytest.approx(float((brightness > 0.4).float().mean()))
    assert float(logged["val/violation_rate"]) == pytest.approx(float((brightness > 0.5).float().mean()))
    assert float(logged["val/brightness"]) == pytest.approx(float(brightness.mean()), rel=1e-5)
    held_out = data.data[1].__getitems__(list(range(16)))
    assert float(logged["val/diffusion_loss"]) == pytest.approx(float(module.held_out_loss(held_out)), rel=1e-5)


def test_the_test_measures_before_and_after_on_the_same_seeds(trained: Any, tiny_data: Any) -> None:
    data = tiny_data(test_samples=20)
    module, trainer = trained(data, evaluation=MeanBrightness())
    trainer.test(module, datamodule=data, verbose=False)
    figures = {}
    for side, weights in (("before", "pretrained"), ("after", "ema")):
        brightness = module.sample(range(20), weights).flatten(1).mean(1)
        figures[side] = float(brightness.mean())
        result = module.evaluator.results[side]
        assert result["own_violation_rate"] == pytest.approx(float((brightness > 0.4).float().mean()))
        assert result["violation_rate"] == pytest.approx(float((brightness > 0.5).float().mean()))
        assert result["metrics"]["brightness"] == pytest.approx(figures[side], rel=1e-5)
        assert result["n"] == 20
    assert module.evaluator.results["after"]["metrics"]["brighter"] == pytest.approx(
        figures["after"] - figures["before"], abs=1e-6
    )


def test_before_any_training_before_and_after_are_one(trained: Any, tiny_data: Any) -> None:
    data = tiny_data()
    module, trainer = trained(data, {"max_steps": 0}, evaluation=MeanBrightness())
    trainer.test(module, datamodule=data, verbose=False)
    assert module.evaluator.results["after"]["metrics"].pop("brighter") == 0
    assert module.evaluator.results["before"] == module.evaluator.results["after"]


def test_without_constraints_there_is_only_after(trained: Any, tiny_data: Any) -> None:
    data = tiny_data()
    module, trainer = trained(data, constraints=None)
    trainer.test(module, datamodule=data, verbose=False)
    assert module.evaluator.results == {
        "after": {"violation_rate": None, "violation_upper_95": None, "n": 8, "metrics": {}}
    }


def test_a_constraint_on_the_step_has_no_say_about_samples(trained: Any, tiny_data: Any, too_bright: Any) -> None:
    class Strict(Constraint):
        needs_step_record = True

        def forward(self, record: StepRecord) -> Tensor:  # type: ignore[override]
            return record.predicted_noise.flatten(1).mean(1) + 1e3

    data = tiny_data(test_samples=20)
    module, trainer = trained(data, constraints=[Strict(), too_bright()], formulation="penalty")
    trainer.test(module, datamodule=data, verbose=False)
    bright = module.sample(range(20)).flatten(1).mean(1) > 0.4
    assert module.evaluator.results["after"]["own_violation_rate"] == pytest.approx(float(bright.float().mean()))


# ---------------------------------------------------------------- stored samples


@pytest.fixture
def stored(tmp_path: Path, tiny_denoiser: Any) -> Path:
    """A weights' folder with 24 stored samples, half of them white, and the card that says how they were drawn."""
    folder = tmp_path / "weights"
    folder.mkdir()
    samples = torch.zeros(24, 1, 8, 8)
    samples[::2] = 1.0
    assets.write_sheet(samples, folder / "samples.png", columns=7)
    drawn = asdict(SAMPLER.of(tiny_denoiser().noise_schedule))
    card = {"sampler": drawn, "precision": "32-true", "count": 24, "size": 8}
    (folder / "card.json").write_text(json.dumps({"samples": card}))
    return folder


def after_a_test(trained: Any, data: Any, folder: Path, **settings: Any) -> Any:
    precision, recompute = settings.pop("precision", "32-true"), settings.pop("recompute", False)
    module, trainer = trained(data, {"precision": precision}, evaluation=MeanBrightness(), **settings)
    module.denoiser.folder, module.evaluator.recompute = folder, recompute
    trainer.test(module, datamodule=data, verbose=False)
    return module


def test_stored_samples_stand_for_the_pretrained_model(trained: Any, tiny_data: Any, stored: Path) -> None:
    module = after_a_test(trained, tiny_data(test_samples=20), stored)
    assert module.evaluator.results["before"]["metrics"]["brightness"] == 0.5
    assert module.evaluator.results["before"]["own_violation_rate"] == 0.5
    after = module.sample(range(20)).flatten(1).mean(1)
    assert module.evaluator.results["after"]["metrics"]["brightness"] == pytest.approx(float(after.mean()), rel=1e-5)


@pytest.mark.parametrize(
    "setting",
    [
        {"sampler": Sampler(steps=5)},
        {"sampler": Sampler(steps=4, eta=0.5)},
        {"recompute": True},
        {"guide": NoGuidance()},
        {"precision": "bf16-mixed"},
    ],
)
def test_samples_stored_otherwise_are_ignored(
    trained: Any, tiny_data: Any, stored: Path, setting: dict[str, Any]
) -> None:
    module = after_a_test(trained, tiny_data(test_samples=20), stored, **setting)
    assert module.evaluator.results["before"]["metrics"]["brightness"] != 0.5


def test_stored_samples_are_not_those_of_what_was_asked_for(told_denoiser: Any, too_bright: Any) -> None:
    evaluator = ConstrainedDiffusion(told_denoiser(), too_bright(), sampler=Sampler(3)).evaluator
    evaluator.stored_samples = lambda precision: torch.full((4, 1, 8, 8), 9.0)  # type: ignore[method-assign]
    told = {"class_labels": torch.tensor([2, 0])}
    found = evaluator.pretrained_samples([0, 1], "32-true", told)
    torch.testing.assert_close(found, evaluator.sample([0, 1], "pretrained", condition=told))


def test_seeds_beyond_the_stored_ones_are_drawn(trained: Any, tiny_data: Any, stored: Path) -> None:
    data = tiny_data(test_samples=40, eval_batch_size=20)
    module = after_a_test(trained, data, stored)
    fresh = float(module.sample(range(20, 40), "pretrained").mean())
    assert module.evaluator.results["before"]["metrics"]["brightness"] == pytest.approx((0.5 + fresh) / 2, rel=1e-5)


@pytest.mark.parametrize("first", [0, 7])
def test_validation_compares_with_the_stored_samples(
    trained: Any, tiny_data: Any, tiny_denoiser: Any, stored: Path, first: int
) -> None:
    denoiser = tiny_denoiser()
    denoiser.folder = stored
    data = tiny_data(val_samples=12, first_eval_seed=first)
    module, trainer = trained(data, denoiser=denoiser, evaluation=MeanBrightness())
    before = float(module.evaluator.stored_samples("32-true")[first : first + 12].mean())
    expected = float(module.sample(range(first, first + 12)).mean()) - before
    assert float(trainer.callback_metrics["val/brighter"]) == pytest.approx(expected, abs=1e-5)


def test_a_sample_whose_g_is_no_number_violates(tiny_denoiser: Any) -> None:
    class Broken(Constraint):
        def forward(self, clean: Tensor) -> Tensor:
            return torch.where(torch.arange(len(clean)) < 3, float("nan"), -1.0)

    module = ConstrainedDiffusion(tiny_denoiser(), Broken())
    module.evaluator.start("after")
    module.evaluator.tallies["after"].update(torch.zeros(4, 1, 8, 8))
    assert module.evaluator.compute()["after"]["own_violation_rate"] == 0.75


def test_constraints_that_do_not_count_have_no_verdict(tiny_denoiser: Any, too_bright: Any) -> None:
    dark, bright = rows(4).clean * 0.1, rows(4).clean * 0.1 + 0.9
    samples = torch.cat([dark, bright])
    counting, helping = too_bright(), too_bright()
    helping.has_verdict = False
    assert Steering([counting]).feasible(samples).tolist() == [1.0] * 4 + [0.0] * 4
    assert Steering([helping]).feasible(samples).tolist() == [1.0] * 8
    assert Steering([helping, counting]).feasible(samples).tolist() == [1.0] * 4 + [0.0] * 4
