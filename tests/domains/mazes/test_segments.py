"""Distances to segments, against dense sampling and closed forms."""

from __future__ import annotations

import pytest
import torch

from constrained_diffusion.domains.mazes.segments import distance_to_segments


def test_distances_agree_with_dense_sampling() -> None:
    random = torch.Generator().manual_seed(0)
    points, starts, ends = torch.rand(3, 200, 2, dtype=torch.float64, generator=random)
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None, None]
    nearest = (starts + t * (ends - starts) - points).square().sum(-1).sqrt().amin(0)
    assert torch.allclose(distance_to_segments(points, starts, ends), nearest, atol=2e-4)
    assert (distance_to_segments(points, starts, ends) <= nearest + 1e-12).all()


def test_a_point_beside_before_and_beyond_a_segment() -> None:
    points = torch.tensor([[0.5, 0.2], [-3.0, 4.0], [2.0, 0.0], [0.3, 0.0]])
    assert distance_to_segments(points, torch.zeros(2), torch.tensor([1.0, 0.0])).tolist() == pytest.approx(
        [0.2, 5, 1, 0]
    )


def test_a_segment_of_length_zero_is_a_point() -> None:
    at = torch.tensor([1.0, 2.0])
    assert float(distance_to_segments(torch.tensor([4.0, 6.0]), at, at)) == 5.0


def test_shapes_broadcast() -> None:
    assert distance_to_segments(torch.zeros(7, 1, 2), torch.zeros(3, 2), torch.ones(3, 2)).shape == (7, 3)
