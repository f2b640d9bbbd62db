"""Noisy paths as cubic splines: what noise leaves of a path that moves by forces, and so has no corners.

A path is B c with the B-spline basis B and coefficients c. Of a path whose frames were seen with precisions w, the most
likely spline has (B' W B) c = B' W y, and its errors the covariance (B' W B)^-1 (weighted least squares). Noise that
no spline follows says nothing of the path, so that c and this covariance hold all that a noisy plan tells; and tokens
of little noise keep their place beside tokens of much.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from constrained_diffusion.runtime.precision import keep_float32, to_float32, without_autocast

STEP = 0.02  #: a step of a path, in units of its deviation
CYCLES = (1 / 6, 1 / 3, 2 / 3, 4 / 3)  #: per deviation of the data; in Maze2D, waves of about 8, 4, 2 and 1 cells


class Splines(nn.Module):
    """Cubic splines through tokens of frames, with uniform knots.

    Args:
        tokens: L.
        frames: S, of a token.
        knots: frames between knots.

    Raises:
        ValueError: fewer than 2 frames between knots.
    """

    basis: Tensor  #: B, `(N, K)`, N = L S
    grams: Tensor  #: B' B of each token's frames, `(L, K, K)`

    def __init__(self, tokens: int, frames: int, knots: int) -> None:
        super().__init__()
        if knots < 2:
            raise ValueError(f"expected at least 2 frames between the knots of splines, got {knots}; 8 suits Maze2D.")
        basis = cubic_basis(tokens * frames, knots)
        by_token = basis.view(tokens, frames, -1)
        self.register_buffer("basis", basis.float())
        self.register_buffer("grams", torch.einsum("lsi,lsj->lij", by_token, by_token).float())

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return super()._apply(keep_float32(fn), recurse)  # type: ignore[no-untyped-call, no-any-return]

    def fit(self, sample: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients of the most likely splines, `(B, K, C)`, and the Cholesky factor of B' W B.

        Args:
            sample: `(B, L, S, C)`.
            precision: of each token's frames, `(B, L)`, positive.
        """
        factor = torch.linalg.cholesky(torch.einsum("bl,lij->bij", precision, self.grams))
        weight = precision[..., None, None].expand(-1, -1, sample.shape[2], 1).flatten(1, 2)

        def solved(path: Tensor) -> Tensor:
            return torch.cholesky_solve(torch.einsum("nk,bnc->bkc", self.basis, weight * path), factor)

        path = sample.flatten(1, 2)
        found = solved(path)
        # Precisions may differ by 1e7, which is all that single precision tells apart: one step of refinement.
        return found + solved(path - torch.einsum("nk,bkc->bnc", self.basis, found)), factor

    def smooth(self, sample: Tensor, precision: Tensor) -> Tensor:
        """Return `sample` `(B, L, S, C)` as the most likely splines, of its own shape; see `fit`."""
        with without_autocast(sample):
            path = torch.einsum("nk,bkc->bnc", self.basis, self.fit(to_float32(sample), to_float32(precision))[0])
        return path.view(sample.shape).to(sample.dtype)

    def views(self, noisy: Tensor, abar: Tensor) -> Tensor:
        """Return what a network is shown of x_t, `(B, N, (3 + 2 len(CYCLES)) C)`, each of about unit size.

        That is the most likely path; its first and second differences from frame to frame, in units of their noise,
        because a step is a fiftieth of the path's deviation and would drown beside it; and waves of the place, each as
        much as is left of it where the place is uncertain (Barron et al. 2021, arXiv 2103.13415, eq. 14).

        Args:
            noisy: x_t `(B, L, S, C)`, in network units.
            abar: of each token, `(B, L)`.
        """
        with without_autocast(noisy):
            abar = to_float32(abar)
            coefficients, factor = self.fit(to_float32(noisy) / abar.sqrt()[..., None, None], abar / (1 - abar))
            rows, found = self.basis, []
            whitening = torch.linalg.solve_triangular(factor, torch.eye(len(factor[0])).to(factor), upper=False)
            for scale in (1.0, STEP, STEP):
                seen = torch.einsum("nk,bkc->bnc", rows, coefficients)
                variance = (rows @ whitening.mT).square().sum(-1, keepdim=True)
                found.append(seen / (variance + scale**2).sqrt())
                if rows is self.basis:
                    for frequency in (2 * math.pi * cycles for cycles in CYCLES):
                        left = (-0.5 * frequency**2 * variance).exp()
                        found += [left * (frequency * seen).sin(), left * (frequency * seen).cos()]
                rows = nn.functional.pad(rows.diff(dim=0), (0, 0, 1, 0))
            return torch.cat(found, dim=-1).to(noisy.dtype)


def cubic_basis(frames: int, knots: int) -> Tensor:
    """Return the cubic B-splines (de Boor 1978) of uniform knots that reach in among the frames.

    Shape `(frames, K)`, float64.

    >>> cubic_basis(4, 3).sum(1).round(decimals=6)
    tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    time = torch.arange(frames, dtype=torch.float64)[:, None] / knots
    away = (time - torch.arange(-1, -(-(frames - 1) // knots) + 2)).abs()
    return torch.where(away < 1, 2 / 3 - away**2 + away**3 / 2, (2 - away).clamp(min=0) ** 3 / 6)
