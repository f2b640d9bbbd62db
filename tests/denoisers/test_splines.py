"""The projection on splines against scipy's least squares, and the noise of its differences against their draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import make_lsq_spline

from constrained_diffusion.denoisers.splines import STEP, along, derivatives, spline_projection


@pytest.mark.parametrize(("frames", "knots"), [(41, 8), (40, 8), (44, 5), (23, 3)])
def test_the_projection_is_scipys_least_squares_spline(frames: int, knots: int) -> None:
    time, path = np.arange(frames, dtype=float), np.random.default_rng(0).normal(size=(frames, 2))
    inside = knots * np.arange(-3, -(-(frames - 1) // knots) + 4, dtype=float)  # uniform, and beyond both ends
    ours = spline_projection(frames, knots) @ torch.from_numpy(path)
    end = inside[-4]
    if end == frames - 1:  # scipy wants the ends of the base interval to be knots
        theirs = make_lsq_spline(time, path, inside, k=3)(time)
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-8)
    else:
        weights = np.r_[np.ones(frames), np.full(int(end) + 1 - frames, 1e-9)]  # frames that hardly count
        longer = np.concatenate([path, np.zeros((int(end) + 1 - frames, 2))])
        theirs = make_lsq_spline(np.arange(end + 1), longer, inside, k=3, w=weights)(time)
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def test_the_projection_leaves_what_is_smooth_and_takes_most_noise() -> None:
    smooth, time = spline_projection(81, 8), torch.linspace(-1, 1, 81, dtype=torch.float64)
    cubic = torch.stack([time**3 - time, 2 - time**2], dim=1)
    assert torch.allclose(smooth @ cubic, cubic, atol=1e-10)
    assert torch.allclose(smooth @ smooth, smooth, atol=1e-10)
    assert torch.allclose(smooth, smooth.T, atol=1e-10)
    assert float(smooth.trace()) == pytest.approx(81 / 8 + 3, abs=0.2)  # as many directions as the basis has functions
    assert torch.equal(spline_projection(7, 1), torch.eye(7, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected at least 1 frame between the knots of splines, got 0"):
        spline_projection(7, 0)


def test_differences_come_in_units_of_their_noise_whatever_each_tokens_level() -> None:
    smooth, generator = spline_projection(24, 3), torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.9, 0.1, 0.5, 0.5, 1.0, 0.3], dtype=torch.float64).view(1, 6, 1, 1)
    noise = sigma * torch.randn(20_000, 6, 4, 2, generator=generator, dtype=torch.float64)
    path, *found = (values.flatten(1, 2) for values in derivatives(noise, sigma, smooth))
    assert torch.equal(path, along(smooth, noise.flatten(1, 2)))
    for order, values in enumerate(found, 1):
        assert torch.equal(values[:, 0], torch.zeros_like(values[:, 0]))
        size = path.diff(n=order, dim=1).std(0)  # of the same frames, drawn
        expected = size / (size.square() + STEP**2).sqrt()
        assert torch.allclose(values[:, order:].std(0), expected, rtol=0.03)
