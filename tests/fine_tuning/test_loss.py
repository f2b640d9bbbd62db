"""The loss, the networks and the evaluator in a training loop of one's own, without Lightning."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.batch import Batch, NoisyBatch, Seeds
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.fine_tuning.evaluator import Evaluator
from constrained_diffusion.fine_tuning.formulation import FORMULATIONS
from constrained_diffusion.fine_tuning.loss import MinSNR, PenaltyLoss
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.networks import Networks
from constrained_diffusion.fine_tuning.noising import draw_held_out, draw_training
from constrained_diffusion.fine_tuning.steering import COEFFICIENTS, Steering
from constrained_diffusion.objectives import Constraint, StepRecord

PARTS = ("loss", "networks", "evaluator", "steering", "noising", "checkpoint")


def test_the_parts_need_no_lightning() -> None:
    program = (
        "import sys; sys.modules['lightning'] = None\n"
        f"for part in {PARTS}: __import__('constrained_diffusion.fine_tuning.' + part)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def rows(count: int = 16) -> Batch:
    clean = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(clean, rows=torch.arange(count))


def step_of(denoiser: Any, number: int = 0, max_timestep: int = 60) -> NoisyBatch:
    return draw_training(rows(), denoiser, (0, number), (0, 1), max_timestep)


def test_a_loop_of_one_s_own_trains_as_lightning_does(
    tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any
) -> None:
    data = tiny_data()
    sgd: Any = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), "penalty", 60, ema_decay=0.8, optimizer=sgd)
    module.steering.penalty_coefficient.fill_(2.0)
    fit(module, data, max_epochs=1)

    denoiser, steering = tiny_denoiser(), Steering([too_bright()])
    steering.penalty_coefficient.fill_(2.0)
    networks, loss = Networks(denoiser, ema_decay=0.8), PenaltyLoss(steering, denoiser, "penalty", 60)
    networks.trained.train()
    optimizer = sgd(networks.trained.parameters())
    for number, batch in enumerate(data.train_dataloader()):
        step = draw_training(batch, denoiser, (0, number), (0, 1), loss.max_timestep)
        result = loss(step, networks.predict(step))
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        networks.update_ema()
    torch.testing.assert_close(networks.trained.state_dict(), module.networks.trained.state_dict())
    torch.testing.assert_close(networks.ema.state_dict(), module.networks.ema.state_dict())
    mine, theirs = Evaluator(networks, steering, sampler=Sampler(steps=3)), module.evaluator
    theirs.sampler = Sampler(steps=3)
    for evaluator in (mine, theirs):
        evaluator.start("after", "before")
        evaluator.test(Seeds(torch.tensor([4, 5, 6])), "32-true")
    assert mine.compute() == theirs.compute()
    assert mine.compute()["after"]["n"] == 3


@pytest.mark.parametrize("name", FORMULATIONS)
def test_a_formulation_is_a_name_or_an_object(tiny_denoiser: Any, too_bright: Any, name: str) -> None:
    by_name = PenaltyLoss(Steering([too_bright()]), tiny_denoiser(), name)
    by_value = PenaltyLoss(Steering([too_bright()]), tiny_denoiser(), replace(FORMULATIONS[name]))
    assert by_name.formulation == by_value.formulation
    assert by_name.needs_frozen == FORMULATIONS[name].anchored


def test_a_conditioned_loss_without_samples_says_so(tiny_denoiser: Any, too_bright: Any) -> None:
    denoiser = tiny_denoiser()
    networks, loss = Networks(denoiser), PenaltyLoss(Steering([too_bright()]), denoiser, "conditioned_algorithm1")
    step = step_of(denoiser)
    with pytest.raises(ValueError, match='set `bank` to .*, or choose "anchored_algorithm1"'):
        loss(step, networks.predict(step), networks.predict_frozen(step))


def test_a_loss_that_compares_with_the_frozen_model_asks_for_it(tiny_denoiser: Any, too_bright: Any) -> None:
    denoiser = tiny_denoiser()
    step, loss = step_of(denoiser), PenaltyLoss(Steering([too_bright()]), denoiser, "anchored_algorithm1")
    with pytest.raises(ValueError, match="compares with the pretrained model: give `frozen`"):
        loss(step, denoiser.predict(step.noisy, step.timesteps))


def test_without_constraints_there_is_the_diffusion_loss_alone(tiny_denoiser: Any) -> None:
    denoiser = tiny_denoiser()
    step = step_of(denoiser)
    found = PenaltyLoss(Steering(), denoiser, "penalty")(step, denoiser.predict(step.noisy, step.timesteps))
    expected = (denoiser.network(step.noisy, step.timesteps) - step.noise).square().mean()
    torch.testing.assert_close(found.loss, expected)
    assert (found.penalty, found.slack, found.penalty_rows) == (None, None, None)
    assert found.terms.keys() == {"loss/diffusion", "loss/total"}


def test_what_the_loss_shares_with_the_denoiser_is_saved_once(tiny_denoiser: Any, too_bright: Any) -> None:
    loss = PenaltyLoss(Steering([too_bright()]), tiny_denoiser())
    assert not [name for name in loss.state_dict() if not name.startswith("steering.")]
    assert loss.schedule is not None
    assert not list(loss.parameters())


@pytest.mark.parametrize("weight", [None, MinSNR(5.0), MinSNR(5.0, 0.1)])
def test_the_held_out_loss_is_weighted_as_the_training_is(tiny_denoiser: Any, weight: MinSNR | None) -> None:
    denoiser = tiny_denoiser()
    loss, step = PenaltyLoss(Steering(), denoiser, loss_weight=weight), draw_held_out(rows(), denoiser, seed=3)
    output = torch.zeros_like(step.noisy)
    abar = denoiser.noise_schedule.alphas_cumprod[step.timesteps]
    snr = abar / (1 - abar)
    factor = 1 if weight is None else snr.clamp(weight.floor, weight.gamma) / snr  # of an error of the noise
    expected = (factor * step.noise.square().flatten(1).mean(1)).mean()
    torch.testing.assert_close(loss.held_out(step, output), expected)


def test_half_precision_leaves_the_coefficients_alone(too_bright: Any) -> None:
    steering = Steering([too_bright(), too_bright()]).to(torch.bfloat16)
    assert steering.names == ["TooBright_0", "TooBright_1"]
    assert {value.dtype for value in steering.buffers()} == {torch.float32}


def test_t_phi_is_a_timestep_of_the_schedule_and_all_of_it_by_default(tiny_denoiser: Any, too_bright: Any) -> None:
    for none_at_all in (0, -1, 101):
        with pytest.raises(ValueError, match=rf"\(T_phi\) must be in 1 .. 100, .* got {none_at_all}"):
            PenaltyLoss(Steering([too_bright()]), tiny_denoiser(), max_timestep=none_at_all)
    denoiser = tiny_denoiser()
    loss = PenaltyLoss(Steering([too_bright()]), denoiser, "penalty")
    assert (loss.max_timestep, loss.open_from) == (100, 50)
    step = draw_training(rows(100), denoiser, (0, 0), (0, 1), 100)  # one row at each timestep
    assert int(loss(step, denoiser.predict(step.noisy, step.timesteps)).penalty_rows) == 100


def test_a_sample_is_an_anchor_by_its_g_in_the_units_of_the_data(tiny_denoiser: Any, too_bright: Any) -> None:
    """A mean pixel of 0.5 is too bright; in the network's units it is 0.0, which would be below the limit of 0.4."""
    denoiser = tiny_denoiser()
    loss = PenaltyLoss(Steering([too_bright()]), denoiser, "anchored_penalty")
    for level, counts in ((0.5, 0.0), (0.3, 1.0)):
        batch = Batch(torch.full((4, 1, 8, 8), level), rows=torch.arange(4))
        step = draw_training(batch, denoiser, (0, 0), (0, 1), 100)
        prediction = denoiser.predict(step.noisy, step.timesteps)
        frozen = prediction._replace(output=prediction.output + 2)
        assert float(loss.diffusion_loss(step, prediction, frozen).detach()) == pytest.approx(4 * counts)


class Closer(Constraint):
    """g = the error of the predicted noise; keeps what it was given."""

    needs_step_record = True

    def forward(self, record: StepRecord) -> Tensor:  # type: ignore[override]
        self.seen = record
        return (record.predicted_noise - record.noise).square().flatten(1).mean(1)


def test_a_constraint_on_steps_sees_the_rows_below_t_phi_as_they_are(tiny_denoiser: Any) -> None:
    denoiser, constraint = tiny_denoiser(), Closer()
    networks, loss = Networks(denoiser), PenaltyLoss(Steering([constraint]), denoiser, "penalty", 60)
    step = step_of(denoiser)
    prediction, frozen = networks.predict(step), networks.predict_frozen(step)
    loss(step, prediction, frozen._replace(noise=frozen.noise + 1))
    record, below = constraint.seen, step.timesteps < 60
    assert 0 < below.sum() < len(below)
    assert not below[: int(below.sum())].all()  # they are not the first ones
    torch.testing.assert_close(record.predicted_clean, (prediction.clean[below] + 1) / 2)
    for found, expected in (
        (record.noisy, step.noisy),
        (record.timesteps, step.timesteps),
        (record.noise, step.noise),
        (record.predicted_noise, prediction.noise),
        (record.frozen_noise, frozen.noise + 1),
    ):
        assert torch.equal(found, expected[below])


def test_the_multiplier_pulls_towards_less_violation_and_the_logged_one_stays(
    tiny_denoiser: Any, too_bright: Any
) -> None:
    denoiser = tiny_denoiser()
    steering = Steering([too_bright()])
    assert {name: float(getattr(steering, name)) for name in COEFFICIENTS} == {
        "penalty_coefficient": 1.0, "stop_below": 0.0, "multiplier": 0.0, "augmentation": 0.0,
    }  # fmt: skip
    steering.penalty_coefficient.fill_(0.0)
    steering.multiplier.fill_(3.0)
    step, loss = step_of(denoiser), PenaltyLoss(steering, denoiser, "penalty", 60)
    found = loss(step, denoiser.predict(step.noisy, step.timesteps))
    assert found.slack is not None
    torch.testing.assert_close(found.loss.detach(), found.terms["loss/diffusion"] + 3 * found.slack.detach()[0])
    steering.multiplier.fill_(7.0)  # as a controller does, in place
    steering.penalty_coefficient.fill_(7.0)
    assert float(found.terms["multiplier/TooBright"]) == 3.0
    assert float(found.terms["penalty_coefficient/TooBright"]) == 0.0
