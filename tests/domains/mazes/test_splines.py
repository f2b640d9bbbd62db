"""Splines through noisy tokens against scipy's least squares, and the units of what a network sees against draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from constrained_diffusion.domains.mazes.splines import CYCLES, STEP, Splines, cubic_basis

TOKENS, FRAMES, KNOTS = 6, 8, 5
PRECISION = torch.tensor([[1e4, 0.01, 0.5, 4.0, 1e-3, 1e4], [1.0] * 6])


@pytest.mark.parametrize(("frames", "knots"), [(41, 8), (40, 8), (44, 5), (23, 3)])
def test_the_basis_is_scipys(frames: int, knots: int) -> None:
    count = -(-(frames - 1) // knots) + 3
    uniform = knots * np.arange(-3, count + 1, dtype=float)
    theirs = BSpline.design_matrix(np.arange(frames, dtype=float), uniform, 3).toarray()
    np.testing.assert_allclose(cubic_basis(frames, knots).numpy(), theirs, atol=1e-12)


def test_the_most_likely_spline_is_numpys_weighted_least_squares() -> None:
    torch.manual_seed(0)
    splines, plans = Splines(TOKENS, FRAMES, KNOTS), torch.randn(2, TOKENS, FRAMES, 2)
    basis = cubic_basis(TOKENS * FRAMES, KNOTS).numpy()
    for ours, plan, precision in zip(splines.smooth(plans, PRECISION), plans, PRECISION, strict=True):
        root = precision.double().sqrt().repeat_interleave(FRAMES).numpy()[:, None]
        path = plan.reshape(-1, 2).double().numpy()
        coefficients = np.linalg.lstsq(root * basis, root * path, rcond=None)[0]
        np.testing.assert_allclose(ours.reshape(-1, 2).numpy(), basis @ coefficients, atol=2e-3)


def test_what_is_a_spline_stays_and_sure_tokens_keep_their_place_beside_unsure_ones() -> None:
    splines = Splines(TOKENS, FRAMES, KNOTS)
    time = torch.linspace(-1, 1, TOKENS * FRAMES)
    cubic = torch.stack([time**3 - time, 2 - time**2], dim=1).view(1, TOKENS, FRAMES, 2)
    assert torch.allclose(splines.smooth(cubic, PRECISION[:1]), cubic, atol=1e-4)
    torch.manual_seed(0)
    noisy = cubic + torch.randn(cubic.shape) / PRECISION[:1, :, None, None].sqrt()
    error = (splines.smooth(noisy, PRECISION[:1]) - cubic).abs().amax((0, 2, 3))
    assert error[[0, -1]].max() < 0.05 < error[4]  # noise of 0.01 beside noise of 10 and 30


def test_noise_that_no_spline_follows_is_not_seen() -> None:
    torch.manual_seed(0)
    splines, plans = Splines(TOKENS, FRAMES, KNOTS), torch.randn(1, TOKENS, FRAMES, 2)
    abar = torch.full((1, TOKENS), 0.3)
    other = torch.randn_like(plans)
    other = other - splines.smooth(other, torch.ones(1, TOKENS))
    assert other.std() > 0.5
    assert torch.allclose(splines.views(plans, abar), splines.views(plans + other, abar), atol=1e-4)


def test_differences_and_waves_come_in_units_of_their_noise() -> None:
    torch.manual_seed(0)
    splines, abar = Splines(TOKENS, FRAMES, KNOTS), torch.tensor([0.99, 0.1, 0.5, 0.5, 0.001, 0.9])
    place = 0.4
    sigma, signal = (1 - abar).sqrt()[:, None, None], abar.sqrt()[:, None, None]
    noisy = signal * place + sigma * torch.randn(8000, TOKENS, FRAMES, 1)
    views = splines.views(noisy, abar.expand(8000, TOKENS))
    assert views.shape == (8000, TOKENS * FRAMES, 3 + 2 * len(CYCLES))
    path = splines.smooth(noisy / signal, (abar / (1 - abar)).expand(8000, TOKENS)).flatten(1, 2)
    for view, order, scale in ((views[..., :1], 0, 1.0), (views[..., -2:-1], 1, STEP), (views[..., -1:], 2, STEP)):
        size = path.diff(n=order, dim=1).std(0)
        expected = size / (size.square() + scale**2).sqrt()
        assert torch.allclose(view[:, order:].std(0), expected, rtol=0.06)
    first = 2 * np.pi * CYCLES[0]
    spread = path.std(0)[:, 0]
    # The mean of a wave over Gaussian errors is that of the true place, damped once more by the errors themselves.
    expected = np.sin(first * place) * torch.exp(-(first**2) * spread**2)
    assert torch.allclose(views[..., 1].mean(0), expected, atol=0.02)


def test_gradients_reach_the_noisy_plan() -> None:
    torch.manual_seed(0)
    splines, abar = Splines(3, 4, 3).double(), torch.tensor([[0.99, 0.1, 0.5]], dtype=torch.float64)
    plan = torch.randn(1, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: splines.smooth(x, 1 / (1 - abar)), plan)
    assert torch.autograd.gradcheck(lambda x: splines.views(x, abar), plan)


def test_half_precision_leaves_the_basis_as_it_is() -> None:
    splines, plan = Splines(TOKENS, FRAMES, KNOTS).to(torch.bfloat16), torch.ones(1, TOKENS, FRAMES, 2)
    assert splines.basis.dtype == torch.float32
    assert splines.smooth(plan.bfloat16(), PRECISION[:1].bfloat16()).dtype == torch.bfloat16


def test_knots_at_every_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 2 frames between the knots of splines, got 1"):
        Splines(TOKENS, FRAMES, 1)
