"""Smoothness of paths whose figures are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.smoothness import (
    acceleration,
    curvature,
    moving_steps,
    plan_statistics,
    quantile,
    step_lengths,
)


def circle(points: int, radius: float = 1.0, turns: float = 1.0) -> Tensor:
    angle = torch.arange(points + 1, dtype=torch.float64) / points * 2 * math.pi * turns
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)[None]


@pytest.mark.parametrize("points", [5, 40, 400])
def test_a_circle(points: int) -> None:
    """Chords of 2 R sin(pi / n), turns of 2 pi / n, second differences of chord * 2 sin(pi / n)."""
    path, half = circle(points, radius=2.0), math.pi / points
    chord = 4 * math.sin(half)
    assert step_lengths(path)[0].tolist() == pytest.approx([chord] * points)
    assert float(curvature(path)) == pytest.approx(1 - math.cos(2 * half), rel=1e-9)
    assert float(acceleration(path)) == pytest.approx(chord * 2 * math.sin(half))


def test_a_straight_line_and_a_way_back() -> None:
    line = torch.stack([torch.linspace(0, 3, 31), torch.linspace(0, 4, 31)], dim=1).double()
    back = torch.cat([line, line[:-1].flip(0)])
    assert float(curvature(line[None])) == pytest.approx(0, abs=1e-12)
    assert float(acceleration(line[None])) == pytest.approx(0, abs=1e-6)
    assert float(curvature(back[None])) == pytest.approx(2 / 59)
    assert float(acceleration(back[None])) == pytest.approx(2 * 5 / 30 / 59, rel=1e-4)


def test_standing_tokens_change_nothing_but_start_and_stop() -> None:
    path = circle(50)
    standing = torch.cat([path[:, :1].expand(-1, 20, -1), path, path[:, -1:].expand(-1, 30, -1)], dim=1)
    assert torch.equal(moving_steps(standing), moving_steps(path))
    assert torch.allclose(curvature(standing), curvature(path))
    chord = float(step_lengths(path)[0, 0])
    both = (49 * float(acceleration(path)) + 2 * chord) / 51  # the start and the stop are accelerations too
    assert float(acceleration(standing)) == pytest.approx(both)


def test_paths_that_stand_have_no_turns() -> None:
    still = torch.full((3, 7, 2), 0.3)
    assert curvature(still).tolist() == acceleration(still).tolist() == [0, 0, 0]
    assert moving_steps(still).shape == (0,)


def test_rows_are_independent() -> None:
    both = torch.cat([circle(30), torch.randn(1, 31, 2, generator=torch.Generator().manual_seed(0)).double()])
    for measure in (curvature, acceleration):
        assert torch.allclose(measure(both), torch.cat([measure(both[:1]), measure(both[1:])]))


@pytest.mark.parametrize("q", [0, 0.3, 0.5, 0.95, 0.999, 1])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_quantiles_are_those_of_numpy(q: float, count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)).double()
    assert quantile(values, q) == pytest.approx(np.quantile(values.numpy(), q), abs=1e-12)


def test_statistics_of_data() -> None:
    paths = torch.cat([circle(100), circle(100, radius=3), torch.zeros(1, 101, 2)])
    found = plan_statistics(paths)
    small, large = 2 * math.sin(math.pi / 100), 6 * math.sin(math.pi / 100)
    turn = 1 - math.cos(2 * math.pi / 100)
    expected = {"step_p50": (small + large) / 2, "step_p99": large, "step_p999": large, "step_max": large}
    bend = 2 * math.sin(math.pi / 100)
    expected |= {"curvature": 2 * turn / 3, "acceleration": (small + large) * bend / 3}
    assert found == pytest.approx(expected)
    assert json.loads(json.dumps(found)) == found


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"that move, got shape \(2, 5, 2\) with 0 steps that move"):
        plan_statistics(torch.zeros(2, 5, 2))
    with pytest.raises(ValueError, match="expect finite paths"):
        plan_statistics(torch.tensor([[[0.0, 0.0], [1.0, 0.0], [torch.nan, 0.0]]]))
