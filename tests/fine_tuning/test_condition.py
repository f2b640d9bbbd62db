"""What a denoiser is told travels with its rows: from data through training and evaluation to predictions."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.batch import Batch, Seeds
from constrained_diffusion.callbacks import Certificate, SampleGrid
from constrained_diffusion.condition import Condition
from constrained_diffusion.datamodules import GeneratedDataModule
from constrained_diffusion.denoisers import Denoiser
from constrained_diffusion.diffusion.rejection import Rejection, attempt_seed
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.evaluation import Evaluation
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.objectives import Constraint, StepRecord
from constrained_diffusion.runtime.conditions import Labels
from constrained_diffusion.runtime.randomness import keyed_normal

SGD, SAMPLER = partial(torch.optim.SGD, lr=0.1), Sampler(steps=3)


class Asked(Evaluation):
    """Notes the label that each sample was asked for, and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[int, float]] = []

    def update(self, clean: Tensor) -> None:
        raise AssertionError("the condition got lost")

    def update_asked(self, clean: Tensor, condition: Condition | None) -> None:
        assert condition is not None
        self.pairs += zip(condition["class_labels"].tolist(), clean.flatten(1).mean(1).tolist(), strict=True)

    def compute(self) -> dict[str, Any]:
        metrics = {str(label): mean for label, mean in self.pairs}
        return {"violation_rate": None, "violation_upper_95": None, "n": len(self.pairs), "metrics": metrics}

    def reset(self) -> None:
        self.pairs = []

    def marks(self, clean: Tensor) -> list[str]:
        return [""] * len(clean)


class Recorded(Constraint):
    """Satisfied; keeps what it saw."""

    needs_step_record = True
    seen: StepRecord | None = None

    def forward(self, record: StepRecord) -> Tensor:  # type: ignore[override]
        if record.condition is not None and "class_labels" in record.condition:
            type(self).seen = record
        return record.predicted_noise.flatten(1).mean(1) * 0 - 1


def module_of(denoiser: Denoiser, constraints: Any = None, **settings: Any) -> ConstrainedDiffusion:
    return ConstrainedDiffusion(denoiser, constraints, **{"sampler": SAMPLER, "optimizer": SGD, **settings})


@pytest.fixture
def fitted(told_denoiser: Any, too_bright: Any, told_data: Any, fit: Any) -> Any:
    """`fitted(**settings)`: a module that was told things for an epoch, its data and its trainer."""

    def make(**settings: Any) -> tuple[ConstrainedDiffusion, Any, Any]:
        callbacks, steps = settings.pop("callbacks", ()), settings.pop("max_steps", -1)
        given = {"constraints": too_bright(), "formulation": "penalty", "evaluation": Asked(), **settings}
        module, data = module_of(told_denoiser(), **given), told_data()
        return module, data, fit(module, data, callbacks, max_epochs=1, max_steps=steps)

    return make


def drawn(module: ConstrainedDiffusion, seeds: list[int], labels: list[int], weights: Any = "ema") -> Tensor:
    """What the module draws by itself, told the labels."""
    return module.evaluator.sample(seeds, weights, condition={"class_labels": torch.tensor(labels)})


# ---------------------------------------------------------------- training


def test_a_training_step_by_hand(fitted: Any) -> None:
    module, data, _ = fitted(max_steps=0, constraints=None)
    module.log_dict = lambda *args, **kwargs: None
    batch = data.data[0].__getitems__(list(range(12)))
    noise = keyed_normal([(0, 1, 0, row) for row in range(12)], (1, 8, 8))
    step_of = module.denoiser.noise_schedule.add_noise
    seen: list[Tensor] = []
    module.trained.told.clear()  # what it was told before work
    module.trained.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    loss = module.training_step(batch, 0)["loss"]
    output = module.trained(step_of(2 * batch.clean - 1, noise, seen[0]), seen[0], batch.condition["class_labels"])
    torch.testing.assert_close(loss, (output - noise).square().mean())
    assert module.trained.told[0] == [row % 3 for row in range(12)]


def test_the_held_out_loss_is_told_too(fitted: Any) -> None:
    module, data, trainer = fitted()
    batch = data.data[1].__getitems__(list(range(12)))
    loss = module.held_out_loss(batch)
    assert float(trainer.callback_metrics["val/diffusion_loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert module.networks.ema.told[-1] == [row % 3 for row in range(12)]
    others = batch._replace(condition={"class_labels": (torch.arange(12) + 1) % 3})
    assert abs(float(module.held_out_loss(others) - loss)) > 1e-3


def test_a_step_record_has_the_condition_of_its_rows(fitted: Any) -> None:
    module, data, _ = fitted(max_steps=0, constraints=Recorded(), max_timestep=40)
    module.log_dict = lambda *args, **kwargs: None
    module.training_step(data.data[0].__getitems__(list(range(12))), 0)
    record = Recorded.seen
    assert record is not None
    assert record.condition is not None
    labels = record.condition["class_labels"]
    assert 0 < len(labels) < 12
    again = module.denoiser.predict(record.noisy, record.timesteps, {"class_labels": labels})
    torch.testing.assert_close(record.predicted_noise, again.noise)  # each label lies beside its own row


def test_the_frozen_model_may_be_told_something_else(told_denoiser: Any, too_bright: Any) -> None:
    from constrained_diffusion.fine_tuning.noising import draw_training

    module = module_of(told_denoiser(), too_bright())
    told, teacher = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 1, 1])
    batch = Batch(torch.rand(4, 1, 8, 8), {"class_labels": told}, teacher={"class_labels": teacher})
    step = draw_training(batch, module.denoiser, (0, 0), (0, 1), 60)
    frozen = module.networks.pretrained(step.noisy, step.timesteps, teacher)
    torch.testing.assert_close(module.networks.predict_frozen(step).output, frozen)
    torch.testing.assert_close(module.networks.predict(step).output, module.trained(step.noisy, step.timesteps, told))


# ---------------------------------------------------------------- evaluation and prediction


def test_validation_draws_what_was_asked_for(fitted: Any) -> None:
    module, _, trainer = fitted()
    means = drawn(module, list(range(7)), [2, 0, 1, 2, 0, 1, 2]).flatten(1).mean(1).tolist()
    for label in (0, 1, 2):
        last = max(place for place in range(7) if [2, 0, 1][place % 3] == label)
        assert float(trainer.callback_metrics[f"val/{label}"]) == pytest.approx(means[last], rel=1e-5)


def test_the_test_asks_both_models_for_the_same(fitted: Any) -> None:
    module, data, trainer = fitted()
    trainer.test(module, datamodule=data, verbose=False)
    for side, weights in (("before", "pretrained"), ("after", "ema")):
        means = drawn(module, [4, 5, 6], [0, 1, 2], weights).flatten(1).mean(1).tolist()
        metrics = module.evaluator.results[side]["metrics"]
        assert [metrics[str(label)] for label in range(3)] == pytest.approx(means, rel=1e-5)


def test_predictions_and_grids_are_what_was_asked_for(fitted: Any, tmp_path: Any) -> None:
    module, data, trainer = fitted()
    found = torch.cat(trainer.predict(module, datamodule=data))
    torch.testing.assert_close(found, drawn(module, list(range(7)), [2, 0, 1, 2, 0, 1, 2]))
    told = module.networks.ema.told
    told.clear()
    SampleGrid(samples=5, columns=5)._draw(trainer, module, "grid", "grid")
    assert (tmp_path / "grids" / "grid.png").is_file()
    assert told == [[2, 0, 1, 2, 0]] * SAMPLER.steps


def test_a_seed_that_draws_again_is_asked_for_the_same(fitted: Any) -> None:
    certificate = Certificate()
    module, data, trainer = fitted(rejection=Rejection(200), callbacks=[certificate])

    class Below(Constraint):
        def forward(self, clean: Tensor) -> Tensor:
            return clean.flatten(1).mean(1) - middle

    middle = float(drawn(module, list(range(30)), [2, 0, 1] * 10).flatten(1).mean(1).median())
    module.steering.constraints[0] = Below()
    results = trainer.predict(module, datamodule=data)
    draws = [count for result in results for count in result.draws.tolist()]
    assert max(draws) > 1
    last = [attempt_seed(seed, count - 1) for seed, count in enumerate(draws)]
    expected = drawn(module, last, [2, 0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(torch.cat([result.samples for result in results]), expected)
    judge = certificate.certificate
    assert judge["n"] == 7
    assert [label for label, _ in module.evaluation.pairs] == [2, 0, 1, 2, 0, 1, 2]


def test_the_generated_set_holds_what_was_asked_for_and_stand_ins(
    told_denoiser: Any, too_bright: Any, fit: Any, tmp_path: Any
) -> None:
    module = module_of(told_denoiser(), too_bright(), formulation="penalty")
    with torch.no_grad():  # label 2 is always too bright, 0 never, 1 now and then
        module.trained.shade.weight[:] = torch.tensor([[9.0], [0.4], [-9.0], [0.0]])
        module.trained.conv.weight.zero_()
        module.trained.conv.bias.zero_()
    module = module_of(module.denoiser, too_bright(), formulation="anchored_penalty")
    data = GeneratedDataModule(
        18, 6, SAMPLER, stand_ins=1, conditions=Labels(3), cache_dir=str(tmp_path / "cache"), batch_size=9
    )
    fit(module, data, max_steps=0)
    rows, held_out = data.data
    asked = rows.condition["class_labels"][:18]  # type: ignore[index]
    assert asked.tolist() == [(1_000_000 + i) % 3 for i in range(18)]
    expected = drawn(module, [1_000_000 + i for i in range(18)], asked.tolist(), "pretrained")
    torch.testing.assert_close(rows.clean[:18], expected)
    assert held_out.condition["class_labels"].tolist() == [(1_000_018 + i) % 3 for i in range(6)]  # type: ignore[index]

    bad = rows.clean[:18].flatten(1).mean(1) > 0.4
    assert bool(bad[asked == 2].all())
    assert not bool(bad[asked == 0].any())
    assert 0 < int(bad[asked == 1].sum()) < 6
    assert len(rows) == 18 + int(bad.sum())
    assert not bool((rows.clean[18:].flatten(1).mean(1) > 0.4).any())
    told, teacher = (part["class_labels"] for part in (rows.condition, rows.teacher))  # type: ignore[index]
    assert torch.equal(told[18:], asked[bad])
    assert torch.equal(teacher[:18], asked)
    for place in range(18, len(rows)):  # a stand-in is a sample of the set, and the teacher knows of which label
        source = int((rows.clean[:18] == rows.clean[place]).flatten(1).all(1).nonzero()[0])
        assert int(teacher[place]) == int(asked[source])
        if bool((~bad[asked == told[place]]).any()):
            assert int(teacher[place]) == int(told[place])


# ---------------------------------------------------------------- refused before work


class Demanding(nn.Module):
    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        raise AssertionError("no work is done")


def told_of(data: Any, **conditions: Any) -> Any:
    return data(conditions=Labels(3, **conditions))


def test_a_network_that_needs_what_nobody_gives_is_refused_by_name(
    told_denoiser: Any, tiny_data: Any, told_data: Any, fit: Any
) -> None:
    plain = told_denoiser()
    demanding = Denoiser(Demanding(), plain.noise_schedule, sample_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="Demanding needs encoder_hidden_states, which nobody gives: expected a data"):
        fit(module_of(demanding), tiny_data())
    with pytest.raises(ValueError, match="Told needs class_labels, which nobody gives"):
        fit(module_of(plain), told_data(conditions=None))


def test_training_rows_without_what_the_network_needs_are_refused(told_denoiser: Any, tiny_data: Any, fit: Any) -> None:
    data = tiny_data(conditions=Labels(3))  # which are of its samples alone, as with ImageFolderDataModule
    with pytest.raises(
        ValueError, match="Told needs class_labels, which the training rows of TinyData lack .* choose Gen"
    ):
        fit(module_of(told_denoiser()), data)


def test_a_name_that_the_network_does_not_know_is_refused(tiny_denoiser: Any, told_data: Any, fit: Any) -> None:
    with pytest.raises(ValueError, match="gives the condition class_labels, which TinyNetwork does not take"):
        fit(module_of(tiny_denoiser()), told_data())


def test_a_condition_with_too_few_rows_is_refused(told_denoiser: Any, told_data: Any, fit: Any) -> None:
    class Short(Labels):
        def of(self, places: Any, denoiser: Any) -> dict[str, Tensor]:
            return super().of(places[:1], denoiser)

    with pytest.raises(ValueError, match="the condition 'class_labels' has 1 rows and the batch 2: expected one row"):
        fit(module_of(told_denoiser()), told_data(conditions=Short(3)))


class TenClasses(nn.Module):
    """Has the attribute in which UNets of diffusers hold their labels; 10 stands for none."""

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding(11, 1)

    def forward(self, noisy: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        raise AssertionError("no work is done")


@pytest.mark.parametrize("wrong", [12, 10])
def test_a_label_that_the_network_does_not_draw_is_refused(
    told_denoiser: Any, told_data: Any, fit: Any, wrong: int
) -> None:
    schedule, null = told_denoiser().noise_schedule, {"class_labels": 10}
    denoiser = Denoiser(TenClasses(), schedule, sample_shape=(1, 8, 8), null_condition=null)
    said = rf"the label {wrong} is asked for, but TenClasses draws the labels 0 to 9 \(10 stands for none\)"
    with pytest.raises(ValueError, match=said):
        fit(module_of(denoiser), told_data(conditions=Labels([3, 9, 0, wrong])))


def test_guidance_and_dropout_need_an_empty_condition(told_denoiser: Any, told_data: Any, fit: Any) -> None:
    whole = told_denoiser()
    parts = whole.network, whole.noise_schedule, None, (1, 8, 8)
    with pytest.raises(ValueError, match="guidance_scale is 2.0, but the model says nothing of an empty condition"):
        Denoiser(*parts, guidance_scale=2.0)
    with pytest.raises(ValueError, match="only one of them has class_labels, style: expected the same names"):
        fit(module_of(Denoiser(*parts, guidance_scale=2.0, null_condition={"style": 0})), told_data())
    with pytest.raises(ValueError, match="condition_dropout is 0.1, but no empty condition of class_labels"):
        fit(module_of(Denoiser(*parts), condition_dropout=0.1), told_data())
    with pytest.raises(ValueError, match=r"condition_dropout is a share of the rows, in \[0, 1\]; got 1.5"):
        module_of(whole, condition_dropout=1.5)


def test_a_batch_without_the_rows_of_its_condition_ends_the_step(told_denoiser: Any) -> None:
    with pytest.raises(ValueError, match="has 2 rows and the batch 3"):
        module_of(told_denoiser()).held_out_loss(Batch(torch.rand(3, 1, 8, 8), {"class_labels": torch.tensor([0, 1])}))


def test_a_prediction_of_seeds_alone_asks_nobody(tiny_denoiser: Any) -> None:
    module = module_of(tiny_denoiser())
    found = module.predict_step(Seeds(torch.tensor([3, 4])), 0)
    torch.testing.assert_close(found, module.evaluator.sample([3, 4]))
