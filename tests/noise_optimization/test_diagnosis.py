"""Constructed stationary points of every type."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from constrained_diffusion.noise_optimization.diagnosis import diagnose


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def on_the_line(z: Tensor) -> Tensor:
    """Data on the line y = 0 of the plane."""
    return torch.stack([z[:, 0], 0 * z[:, 1]], 1)


def on_the_edge(z: Tensor) -> Tensor:
    """A bounded range, far out where it hardly moves."""
    return (z + 12).tanh()


@pytest.mark.parametrize(
    ("sample", "reward", "kind"),
    [
        (lambda z: z, lambda x: -(x - x.detach()).square().sum(1), "I"),
        (lambda z: z, lambda x: (1e-3 * x).sum(1), "I"),
        (on_the_edge, lambda x: x.sum(1), "II"),
        (on_the_line, lambda x: x[:, 1], "III"),
        (on_the_line, lambda x: x.sum(1), "moving"),
        (lambda z: z, lambda x: x.sum(1), "moving"),
        (lambda z: 100 * on_the_line(z), lambda x: 100 * x[:, 1], "III"),  # the scale does not decide
        (lambda z: 100 * on_the_line(z), lambda x: 100 * (x[:, 1] + 1e-3 * x[:, 0]), "III"),
        (lambda z: 100 * on_the_line(z), lambda x: 100 * x[:, 0], "moving"),
    ],
)
def test_the_type_of_a_stationary_point(
    sample: Callable[[Tensor], Tensor], reward: Callable[[Tensor], Tensor], kind: str
) -> None:
    assert [found.kind for found in diagnose(sample, reward, draw(3, 2))] == [kind] * 3


def test_the_norms_are_those_of_a_linear_map() -> None:
    matrix, slope = draw(5, 4), torch.arange(5.0)
    [found] = diagnose(lambda z: z @ matrix.T, lambda x: x @ slope, draw(1, 4), probes=2000)
    assert found.reward_gradient == pytest.approx(slope.norm().item())
    assert found.jacobian == pytest.approx(matrix.norm().item(), rel=0.05)
    assert found.product == pytest.approx((slope @ matrix).norm().item())


def test_every_row_is_told_apart() -> None:
    def reward(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, x[:, 1], x[:, 0])

    assert [found.kind for found in diagnose(on_the_line, reward, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))] == [
        "III",
        "moving",
    ]


def test_the_tolerance_is_the_callers() -> None:
    assert diagnose(lambda z: z, lambda x: 0.1 * x.sum(1), draw(1, 2))[0].kind == "moving"
    assert diagnose(lambda z: z, lambda x: 0.1 * x.sum(1), draw(1, 2), tolerance=0.2)[0].kind == "I"
