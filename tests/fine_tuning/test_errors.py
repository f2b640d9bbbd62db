from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.denoisers.tokens import TokenTransformer
from constrained_diffusion.diffusion import Normalizer
from constrained_diffusion.fine_tuning.errors import ERRORS, check_loss
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

UNITS = Normalizer(mean=0.5, std=0.5, low=0.0, high=1.0)


def test_errors_are_torchs() -> None:
    logits, numbers = torch.randn(4, 6, 9), torch.randint(6, (4, 9))
    output, target = 2 * logits.softmax(1) - 1, 2 * one_hot(numbers, 6).mT.float() - 1
    found = ERRORS["cross_entropy"](output, target, UNITS)
    torch.testing.assert_close(found, cross_entropy(logits, numbers, reduction="none"))
    torch.testing.assert_close(ERRORS["squared"](output, target, UNITS).mean(), mse_loss(output, target))


def test_a_share_of_nothing_costs_a_finite_amount() -> None:
    sure = 2 * one_hot(torch.tensor([[0]]), 3).mT.float() - 1
    wrong = 2 * one_hot(torch.tensor([[1]]), 3).mT.float() - 1
    assert ERRORS["cross_entropy"](wrong, sure, UNITS).item() == pytest.approx(math.log(1e6), rel=1e-5)


def test_losses_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="loss must be one of squared, cross_entropy, got 'l1'"):
        check_loss("l1", "epsilon")
    with pytest.raises(ValueError, match="prediction_type is 'epsilon'; take a network that predicts samples"):
        check_loss("cross_entropy", "epsilon")


def test_a_module_trains_and_is_measured_by_its_loss() -> None:
    schedule = DiffusersSchedule({"num_train_timesteps": 50, "prediction_type": "sample"})
    network = TokenTransformer((5, 6), width=8, depth=1, heads=2, feedforward=8, num_train_timesteps=50)
    module = ConstrainedDiffusion(Denoiser(network, schedule), loss="cross_entropy")
    output, target = 2 * torch.rand(3, 5, 6).softmax(1) - 1, 2 * one_hot(torch.randint(5, (3, 6)), 5).mT.float() - 1
    found = module.errors(output, target, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found, ERRORS["cross_entropy"](output, target, UNITS))
    with pytest.raises(ValueError, match="loss must be one of"):
        ConstrainedDiffusion(Denoiser(network, schedule), loss="l1")
