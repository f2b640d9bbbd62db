"""A constraint that cannot be learnt is told, one that can is not."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.callbacks import GradientCheck
from constrained_diffusion.callbacks.run.gradient_check import violating_and_moved
from constrained_diffusion.domains.images.class_probability import ClassProbability
from constrained_diffusion.fine_tuning.divergence import KLFromPretrained
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.objectives import Constraint


class Rounded(Constraint):
    def forward(self, clean: Tensor) -> Tensor:
        return clean.round().flatten(1).mean(1) - 0.1


class Compared(Constraint):
    def forward(self, clean: Tensor) -> Tensor:
        return (clean > 0.5).float().flatten(1).mean(1) - 0.1


class Saturated(Constraint):
    def forward(self, clean: Tensor) -> Tensor:
        return torch.sigmoid(1e4 * clean.flatten(1).mean(1)) - 0.1


class OneRowMoves(Constraint):
    def forward(self, clean: Tensor) -> Tensor:
        first = torch.arange(len(clean)) == 0
        return torch.where(first, clean.flatten(1).mean(1) + 1, 1.0)


@pytest.mark.parametrize("constraint", [Rounded, Compared, Saturated])
def test_a_gradient_that_vanishes_is_told_once(constraint: Any, tiny_denoiser: Any, tiny_data: Any, fit: Any) -> None:
    module = ConstrainedDiffusion(tiny_denoiser(), [constraint(), KLFromPretrained(1.0)])
    message = f"gradient of '{constraint.__name__}' is zero in all \\d+ training rows"
    with pytest.warns(UserWarning, match=message) as told:
        fit(module, tiny_data(), [GradientCheck()])
    assert len([warning for warning in told if "the gradient of" in str(warning.message)]) == 1


@pytest.mark.parametrize("tolerance", [0.0, 1.0])  # violated, and nowhere violated
def test_a_gradient_that_is_there_is_not(
    tolerance: float, too_bright: Any, tiny_denoiser: Any, tiny_data: Any, fit: Any
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the gradient of")
        fit(ConstrainedDiffusion(tiny_denoiser(), too_bright(tolerance)), tiny_data(), [GradientCheck()])


def test_it_judges_in_single_precision_whatever_the_networks_do(tiny_denoiser: Any, tiny_data: Any, fit: Any) -> None:
    judge = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    module = ConstrainedDiffusion(tiny_denoiser(), ClassProbability(judge, label=1))
    fit(module, tiny_data(), [GradientCheck()], precision="bf16-true", max_epochs=1)


def test_it_stops_looking(too_bright: Any, tiny_denoiser: Any, tiny_data: Any, fit: Any) -> None:
    looks = []

    class Counted(Constraint):
        def forward(self, clean: Tensor) -> Tensor:
            looks.append(torch.is_inference_mode_enabled() or not clean.is_leaf)
            return clean.flatten(1).mean(1) - 2  # never violated

    fit(ConstrainedDiffusion(tiny_denoiser(), Counted()), tiny_data(), [GradientCheck()], max_epochs=5)
    assert looks.count(False) >= 10  # its own look at leaves
    assert len(looks) < 2 * 20 + 40 + 10


def test_counts_in_closed_form() -> None:
    clean = torch.rand(4, 3)
    assert violating_and_moved(OneRowMoves(), clean) == (4, 1)
    assert violating_and_moved(OneRowMoves(tolerance=5.0), clean) == (0, 0)
    assert violating_and_moved(Compared(tolerance=-1.0), clean) == (4, 0)
    with torch.no_grad():
        assert violating_and_moved(OneRowMoves(), clean) == (4, 1)
