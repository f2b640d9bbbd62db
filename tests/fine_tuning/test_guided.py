"""Constraints that see the predicted clean sample with guidance, and those that see some rows alone: by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.batch import Batch, NoisyBatch
from constrained_diffusion.diffusion.codec import Codec
from constrained_diffusion.fine_tuning.loss import PenaltyLoss
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.noising import draw_training
from constrained_diffusion.fine_tuning.steering import Steering

SCALE, NOTHING = 3.0, 3


@pytest.fixture
def module(told_denoiser: Any, too_bright: Any) -> ConstrainedDiffusion:
    made = ConstrainedDiffusion(told_denoiser(SCALE), too_bright(), "penalty", guided_penalty=True)
    made.double()
    made.steering.penalty_coefficient.fill_(2.0)
    made.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
    return made


def batch() -> Batch:
    clean = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(clean, {"class_labels": torch.arange(12) % 3})


def by_hand(module: ConstrainedDiffusion, step: NoisyBatch) -> Tensor:
    """L_diff of the plain prediction, and 2 relu(g)^2 of the guided one, from two calls of the network."""
    labels = torch.arange(12) % 3
    told = module.trained(step.noisy, step.timesteps, labels)
    null = module.trained(step.noisy, step.timesteps, torch.full((12,), NOTHING))
    guided = null + SCALE * (told - null)
    abar = module.denoiser.noise_schedule.alphas_cumprod[step.timesteps].double().reshape(-1, 1, 1, 1)  # type: ignore[union-attr, index, operator]
    clean = ((step.noisy - (1 - abar).sqrt() * guided) / abar.sqrt()).clamp(-1, 1)  # its slope passes as that of x
    straight = (step.noisy - (1 - abar).sqrt() * guided) / abar.sqrt()
    seen = (clean - straight).detach() + straight
    g = (seen + 1).flatten(1).mean(1) / 2 - 0.4
    return (told - step.noise).square().mean() + 2 * torch.relu(g).square().mean()


def test_value_and_gradient_by_hand(module: ConstrainedDiffusion) -> None:
    step = draw_training(batch(), module.denoiser, (0, 0), (0, 1), 100)
    loss, expected = module.training_step(batch(), 0)["loss"], by_hand(module, step)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    weights = list(module.trained.parameters())
    found, wanted = torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
    assert wanted[0][NOTHING].abs().max() > 0  # what the network is told where it is told nothing matters too


def test_both_branches_come_from_one_call(module: ConstrainedDiffusion) -> None:
    told = module.trained.told
    told.clear()  # type: ignore[operator, union-attr]
    module.training_step(batch(), 0)
    assert told == [[NOTHING] * 12 + [0, 1, 2] * 4]


def test_the_ratio_of_algorithm_1_has_the_error_of_the_plain_prediction(told_denoiser: Any, too_bright: Any) -> None:
    module = ConstrainedDiffusion(told_denoiser(SCALE), too_bright(), "algorithm1", guided_penalty=True).double()
    step = draw_training(batch(), module.denoiser, (0, 0), (0, 1), 100)
    prediction, judged = module.networks.predict_judged(step, True)
    error = (prediction.noise - step.noise).square().mean()
    assert ((judged.noise - step.noise).square().mean() - error).abs() > 1e-3
    torch.testing.assert_close(module.loss(step, prediction, None, judged).loss, 2 * error)  # rho P = E


def test_without_guidance_the_plain_prediction_is_judged(module: ConstrainedDiffusion, told_denoiser: Any) -> None:
    step = draw_training(batch(), module.denoiser, (0, 0), (0, 1), 100)
    for settings in ((False, SCALE), (True, 1.0)):
        module.denoiser.guidance_scale = settings[1]
        module.trained.told.clear()  # type: ignore[operator, union-attr]
        prediction, judged = module.networks.predict_judged(step, settings[0])
        assert judged is prediction
        assert module.trained.told == [[0, 1, 2] * 4]


def test_without_constraints_nothing_is_guided(told_denoiser: Any) -> None:
    assert not ConstrainedDiffusion(told_denoiser(SCALE), guided_penalty=True).guided_penalty


# ---------------------------------------------------------------- rows that are decoded


class Counting(Codec):
    """Notes how many rows are decoded; black is 0 and white 1, in both spaces."""

    def __init__(self) -> None:
        super().__init__()
        self.settings, self.rows = {}, []

    def encode(self, data: Tensor) -> Tensor:
        return data

    def decode(self, encoded: Tensor) -> Tensor:
        self.rows.append(len(encoded))
        return encoded


@pytest.mark.parametrize(("limit", "decoded"), [(None, 7), (3, 3), (50, 7)])
def test_a_limit_bounds_the_rows_that_are_decoded_and_judged(
    tiny_denoiser: Any, too_bright: Any, limit: int | None, decoded: int
) -> None:
    denoiser = tiny_denoiser()
    denoiser.codec = codec = Counting()
    loss = PenaltyLoss(Steering([too_bright()]), denoiser, "penalty", 60, decode_rows=limit)
    step = draw_training(batch()._replace(condition=None, clean=batch().clean.float()), denoiser, (0, 0), (0, 1), 60)
    prediction = denoiser.predict(step.noisy, step.timesteps)
    result = loss(step, prediction)
    assert codec.rows == [decoded]
    first = (step.timesteps < 60).nonzero().squeeze(1)[:decoded]
    expected = torch.relu(prediction.clean[first].flatten(1).mean(1) - 0.4).square().mean()
    assert result.penalty is not None
    assert expected > 0
    torch.testing.assert_close(result.penalty[0], expected)
    assert result.penalty_rows == decoded


def test_a_limit_of_no_rows_is_refused(tiny_denoiser: Any, too_bright: Any) -> None:
    with pytest.raises(ValueError, match="decode_rows is a number of rows, at least 1, got 0; None decodes all"):
        ConstrainedDiffusion(tiny_denoiser(), too_bright(), decode_rows=0)
