"""Distances to the pieces of a path: what a judge of plans measures with."""

from __future__ import annotations

from torch import Tensor


def distance_to_segments(points: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Return the distances between points and straight segments; shapes broadcast, `(...)` from `(..., 2)` each.

    The nearest point of a segment is start + t (end - start) with t = (point - start) . (end - start) / |end - start|^2
    held in [0, 1]. A segment of length zero is the point that it starts at.
    """
    # By components: sums over an axis of length 2 are slow, and judges measure millions of pairs.
    (x, y), (along_x, along_y) = (points - starts).unbind(-1), (ends - starts).unbind(-1)
    squared = along_x.square() + along_y.square()
    t = ((x * along_x + y * along_y) / squared.masked_fill(squared == 0, 1.0)).clamp(0, 1)
    return ((x - t * along_x).square() + (y - t * along_y).square()).sqrt()
