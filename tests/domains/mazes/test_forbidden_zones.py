"""Distances to zones against dense sampling of the path in numpy, gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones, point_distances, segment_distances
from constrained_diffusion.domains.mazes.plans import as_plans
from constrained_diffusion.domains.mazes.zones import draw_zones

CENTRES = torch.tensor([[-0.5, 0.75], [1.5, -0.2]], dtype=torch.float64)


def paths(rows: int = 3, length: int = 12, seed: int = 0) -> Tensor:
    """Paths with jumps and with a stand of three frames."""
    drawn = torch.randn(rows, length, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[:, 4:7] = drawn[:, 4:5]
    return drawn


def plan(*places: tuple[float, float]) -> Tensor:
    """One plan of one token with these frames."""
    return torch.tensor(places)[None, None]


def zones(**settings: object) -> ForbiddenZones:
    return ForbiddenZones("open", **{"centres": [[0.0, 0.0]], "margin": 0.0, **settings})  # type: ignore[arg-type]


def test_distances_of_points() -> None:
    path = paths()
    expected = np.linalg.norm(path.numpy()[:, :, None] - CENTRES.numpy(), axis=-1)
    np.testing.assert_allclose(point_distances(path, CENTRES), expected, rtol=1e-12)


def test_distances_of_segments_are_those_of_the_nearest_of_many_points_on_them() -> None:
    path = paths().numpy()
    share = np.linspace(0, 1, 20_001)[:, None, None, None]
    on_it = path[:, :-1] + share * (path[:, 1:] - path[:, :-1])
    for z, centre in enumerate(CENTRES.numpy()):
        nearest = np.linalg.norm(on_it - centre, axis=-1).min(0)
        np.testing.assert_allclose(segment_distances(paths(), CENTRES)[..., z], nearest, atol=1e-6)


@pytest.mark.parametrize("distances", [point_distances, segment_distances])
def test_gradients(distances: Callable[[Tensor, Tensor], Tensor]) -> None:
    def of_a_path_that_stands(path: Tensor) -> Tensor:
        return distances(torch.cat([path[:, :1], path], dim=1), CENTRES)

    drawn = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(of_a_path_that_stands, (drawn,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["points", "segments"])
@pytest.mark.parametrize("reduction", ["each", "worst"])
def test_stands_on_the_centre_and_elsewhere_are_finite(form: str, reduction: str, dtype: torch.dtype) -> None:
    clean = torch.tensor([[0.0, 0.0]] * 4 + [[0.0, 1e-30]] * 2 + [[0.1, 0.2]] * 4, dtype=dtype)
    clean = clean.reshape(1, 2, 5, 2).requires_grad_()
    values = zones(form=form, reduction=reduction)(clean)
    values.relu().square().sum().backward()
    assert bool(values.isfinite().all())
    assert float(values.detach().max()) == pytest.approx(0.3)
    assert bool(clean.grad.isfinite().all())


def test_the_gradient_leads_out_of_the_zone() -> None:
    clean = plan((-0.2, 0.1), (0.2, 0.1)).requires_grad_()
    zones(reduction="worst")(clean).sum().backward()
    assert clean.grad is not None
    torch.testing.assert_close(-clean.grad, plan((0.0, 0.5), (0.0, 0.5)))  # the middle moves up, and so do both ends


def test_the_value_is_radius_plus_margin_minus_distance() -> None:
    clean = plan((0.3, 0.4), (1.0, 0.0), (1.0, 0.0))
    constraint = zones(centres=[[0.0, 0.0], [1.0, 1.0]], form="points", margin=0.1)
    expected = torch.tensor([[0.4 - 0.5, 0.4 - np.hypot(0.7, 0.6), 0.4 - 1, 0.4 - 1, 0.4 - 1, 0.4 - 1]])
    torch.testing.assert_close(constraint(clean), expected.float())
    worst = zones(centres=[[0.0, 0.0], [1.0, 1.0]], form="points", margin=0.1, reduction="worst")
    torch.testing.assert_close(worst(clean), torch.tensor([-0.1]))


def test_a_jump_across_a_zone_is_seen_by_segments_and_not_by_points() -> None:
    clean = plan((-1.0, 0.1), (1.0, 0.1))
    assert bool((zones(form="points")(clean) < 0).all())
    torch.testing.assert_close(zones(form="segments")(clean), torch.tensor([[0.2]]))


def test_velocities_have_no_say() -> None:
    frames = torch.cat([paths(length=6), torch.full((3, 6, 4), 9.0, dtype=torch.float64)], dim=-1)
    with_them, without = as_plans(frames, 3), as_plans(frames[..., :2], 3)
    assert with_them.shape == (3, 4, 3, 6)
    assert torch.equal(zones()(with_them), zones()(without))
    assert zones()(with_them).shape == (3, 11)


def test_half_precision_is_widened() -> None:
    assert zones()(plan((0.5, 0.0), (0.5, 0.5)).bfloat16()).dtype == torch.float32


def test_its_attributes() -> None:
    constraint = ForbiddenZones("medium", count=2, seed=3, margin=0.05)
    assert constraint.maze.size == (8, 8)
    assert (constraint.radius, constraint.margin) == (0.3, 0.05)
    torch.testing.assert_close(constraint.centres, torch.tensor(draw_zones(constraint.maze, 2, 0.3, 3)))
    assert "centres" in dict(constraint.named_buffers())


def test_infeasible_zones_are_refused_with_the_margin_counted() -> None:
    ForbiddenZones("umaze", [[0.0, 1.2]], margin=0.0)
    with pytest.raises(ValueError, match=r"zone 0 at \[0, 1.2\] is infeasible: radius 0.65"):
        ForbiddenZones("umaze", [[0.0, 1.2]], margin=0.35)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"radius": 0.0}, "a positive radius and a margin of 0 or more"),
        ({"radius": float("nan")}, "a positive radius"),
        ({"margin": -0.1}, "a margin of 0 or more"),
        ({"form": "curves"}, "a form of points or segments, got 'curves'"),
        ({"reduction": "mean"}, "a reduction of each or worst, got 'mean'"),
        ({"centres": None}, "either centres or a count"),
        ({"count": 2}, "either centres or a count"),
        ({"centres": []}, "at least one centre"),
        ({"centres": [[9.0, 9.0]]}, "zone 0 at .9, 9. is infeasible: it lies outside"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zones(**wrong)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5), (4, 3, 5)])
def test_samples_that_are_no_plans(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ForbiddenZones expects plans of shape"):
        zones().check_data(shape)


def test_a_single_frame_has_no_segment() -> None:
    zones(form="points").check_data((1, 1, 2))
    with pytest.raises(ValueError, match="ForbiddenZones expects plans with more frames than .1, 1."):
        zones(form="segments").check_data((1, 1, 2))
