"""Constructed stationary points of every type."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from constrained_diffusion.noise_optimization.diagnosis import diagnose

Reward = Callable[[Tensor], Tensor]
WEIGHT = torch.ones(1, requires_grad=True)  # of a network that was not frozen


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def on_the_line(z: Tensor) -> Tensor:
    """Data on the line y = 0 of the plane."""
    return torch.stack([z[:, 0], 0 * z[:, 1]], 1)


FAR = 12 + draw(3, 2)  # out there, tanh hardly moves
PEAK = torch.full((3, 2), 0.5)


def hill(x: Tensor) -> Tensor:
    return -(x - 0.5).square().sum(1)


def slope(x: Tensor) -> Tensor:
    return x.sum(1)


@pytest.mark.parametrize(
    ("sample", "reward", "noise", "kind"),
    [
        (lambda z: z, hill, PEAK, "I"),
        (lambda z: z, hill, PEAK + 0.1, "moving"),
        (lambda z: z, lambda x: -(x - x.detach()).square().sum(1), draw(3, 2), "I"),
        (torch.tanh, slope, FAR, "II"),
        (torch.tanh, slope, draw(3, 2), "moving"),
        (on_the_line, lambda x: x[:, 1], draw(3, 2), "III"),
        (on_the_line, lambda x: x[:, 1] + 1e-3 * x[:, 0], draw(3, 2), "III"),
        (on_the_line, slope, draw(3, 2), "moving"),
        (lambda z: z, slope, draw(3, 2), "moving"),
    ],
)
@pytest.mark.parametrize("unit_of_x", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("unit_of_r", [1e-3, 1.0, 100.0])
def test_the_type_of_a_stationary_point_in_any_units(
    sample: Reward, reward: Reward, noise: Tensor, kind: str, unit_of_x: float, unit_of_r: float
) -> None:
    found = diagnose(lambda z: unit_of_x * sample(z), lambda x: 7 + unit_of_r * reward(x / unit_of_x), noise)
    assert [row.kind for row in found] == [kind] * 3


@pytest.mark.parametrize("n", [10, 10_000, 1_000_000])
def test_the_type_does_not_depend_on_how_many_numbers_a_sample_has(n: int) -> None:
    """The gradient of a mean has norm 1 / sqrt(n), the identity's derivative norm sqrt(n)."""

    def nearness(x: Tensor) -> Tensor:
        return -(x - 0.5).square().mean(1)

    for reward, noise, kind in [
        (lambda x: x.mean(1), draw(1, n), "moving"),
        (nearness, draw(1, n), "moving"),
        (nearness, torch.full((1, n), 0.5) + 1e-3 * draw(1, n), "I"),
    ]:
        assert diagnose(lambda z: z * 1.0, reward, noise, probes=2)[0].kind == kind
    assert diagnose(torch.tanh, lambda x: x.mean(1), 12 + draw(1, n), probes=2)[0].kind == "II"
    first = torch.arange(n) < n // 2
    assert diagnose(lambda z: z * first, lambda x: x[:, -1], draw(1, n), probes=2)[0].kind == "III"


@pytest.mark.parametrize("give", [lambda x: x.new_ones(len(x)), lambda x: 0 * x.sum(1), lambda x: x.detach().sum(1)])
def test_a_constant_reward_is_of_type_one(give: Reward) -> None:
    for found in diagnose(lambda z: z, give, draw(3, 2)):
        assert (found.kind, found.reward_gradient, found.product) == ("I", 0.0, 0.0)


@pytest.mark.parametrize("sample", [torch.ones_like, lambda z: 0 * z, lambda z: torch.ones_like(z) * WEIGHT])
def test_a_sample_that_is_the_same_for_every_noise_is_of_type_two(sample: Reward) -> None:
    for found in diagnose(sample, slope, draw(3, 2)):
        assert (found.kind, found.jacobian, found.product) == ("II", 0.0, 0.0)


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


def test_neither_place_nor_neighbours_matter() -> None:
    def curved(z: Tensor) -> Tensor:
        return torch.stack([z[:, 0] * z[:, 1], z[:, 0].sin(), z[:, 1].exp()], 1)

    noise = draw(4, 2)
    together = diagnose(curved, slope, noise, probes=2)
    alone = [diagnose(curved, slope, row[None], probes=2)[0] for row in noise]
    for ours, theirs in zip(alone, together, strict=True):
        assert ours.kind == theirs.kind
        assert ours[1:] == pytest.approx(theirs[1:], rel=1e-5)
    assert diagnose(curved, slope, noise, probes=2, seed=1)[0].jacobian != pytest.approx(together[0].jacobian, rel=1e-3)


def test_contexts_go_with_their_rows() -> None:
    def sample(z: Tensor, context: list[str]) -> Tensor:
        plane = torch.tensor([[kind == "plane"] for kind in context])
        return torch.where(plane, z, on_the_line(z))

    def reward(x: Tensor, context: list[str]) -> Tensor:
        return torch.stack([row.sum() * 0 if kind == "flat" else row[1] for row, kind in zip(x, context, strict=True)])

    context = ["plane", "line", "flat"]
    assert [found.kind for found in diagnose(sample, reward, draw(3, 2), context=context)] == ["moving", "III", "I"]
    with pytest.raises(ValueError, match="context needs one entry per row of the noise, 2, but has 3"):
        diagnose(sample, reward, draw(2, 2), context=context)


def test_the_tolerance_is_the_callers() -> None:
    near = PEAK[:1] + 0.05
    assert diagnose(lambda z: z, hill, near)[0].kind == "moving"
    assert diagnose(lambda z: z, hill, near, tolerance=0.2)[0].kind == "I"


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="probes >= 1 and fresh >= 1, got 0 and 2"):
        diagnose(lambda z: z, slope, draw(1, 2), probes=0)
    with pytest.raises(ValueError, match="expected probes >= 1 and fresh >= 1, got 8 and 0"):
        diagnose(lambda z: z, slope, draw(1, 2), fresh=0)
    with pytest.raises(ValueError, match="slope returned nan for a sample"):
        diagnose(lambda z: z, slope, draw(1, 2) * float("nan"))
