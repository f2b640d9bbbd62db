from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.domains.images.jpeg import JPEGCompressibility
from constrained_diffusion.domains.mazes import HeldEnds, ZoneBarrier, ZoneProjection
from constrained_diffusion.domains.mazes.barrier import barrier_step
from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones
from constrained_diffusion.domains.mazes.goal import NearGoal
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.domains.mazes.projection import pushed_out
from constrained_diffusion.domains.mazes.walls import Walls
from constrained_diffusion.guides import Chain, Guide, LossGuidance

START, GOAL = [-2.5, 2.5], [2.5, -2.5]
SAMPLER = Sampler(steps=8)


def zones() -> ForbiddenZones:
    return ForbiddenZones("open", centres=[[0.2, -0.3]], radius=0.4, margin=0.0, form="points")


def drawn(planner: Denoiser, guide: Guide | None, sampler: Sampler = SAMPLER, count: int = 16) -> Tensor:
    z = seeded_noise(range(count), planner.sample_shape, sampler, planner.noise_schedule)
    predict = planner.predict if guide is None else guide(planner.predict, planner)
    return planner.codec.decode(sampler(predict, planner.noise_schedule, z))


GUIDES: dict[str, Callable[[], Guide]] = {
    "held": lambda: HeldEnds(START, GOAL),
    "guidance": lambda: LossGuidance(zones(), scale=2.0),
    "projection": lambda: ZoneProjection(zones()),
    "barrier": lambda: ZoneBarrier(zones()),
    "chain": lambda: Chain([ZoneProjection(zones()), HeldEnds(START, GOAL)]),
}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("clip_sample", [True, False])
def test_a_guide_steers_however_predictions_are_read(name: str, clip_sample: bool, planner: Denoiser) -> None:
    sampler = Sampler(steps=8, clip_sample=clip_sample)
    plain, guided = drawn(planner, None, sampler), drawn(planner, GUIDES[name](), sampler)
    assert guided.isfinite().all()
    assert not torch.allclose(plain, guided, atol=1e-3)
    other = drawn(planner, GUIDES[name](), Sampler(steps=8, clip_sample=not clip_sample))
    assert torch.allclose(guided, other, atol=1e-3)  # the range is open, so that nothing is clipped


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_tells_its_settings(name: str) -> None:
    assert repr(GUIDES[name]()) == repr(GUIDES[name]())
    assert "=" in repr(GUIDES[name]())


def test_settings_tell_guides_apart() -> None:
    assert repr(HeldEnds(START)) != repr(HeldEnds(GOAL)) != repr(HeldEnds(goal=GOAL))
    assert repr(ZoneProjection(zones())) != repr(
        ZoneProjection(ForbiddenZones("open", centres=[[1.0, 0.0]], margin=0.0, form="points"))
    )


def test_held_ends_stand_where_they_shall(planner: Denoiser) -> None:
    plans = drawn(planner, HeldEnds(START, GOAL))
    assert torch.allclose(points(plans)[:, :4], torch.tensor(START).expand(16, 4, 2), atol=1e-5)
    assert torch.allclose(points(plans)[:, -4:], torch.tensor(GOAL).expand(16, 4, 2), atol=1e-5)
    only = drawn(planner, HeldEnds(goal=GOAL))
    assert not torch.allclose(points(only)[:, 0], torch.tensor(START).expand(16, 2), atol=0.1)


def test_the_denoiser_sees_held_tokens_clean_and_at_level_zero(planner: Denoiser) -> None:
    noisy, levels = HeldEnds(START, GOAL).hold(torch.randn(3, 6, 4, 2), torch.tensor([10, 50, 99]), planner)
    assert levels.tolist() == [[0, t, t, t, t, 0] for t in (10, 50, 99)]
    assert torch.allclose(planner.codec.decode(noisy)[:, 0], torch.tensor(START).expand(3, 4, 2), atol=1e-5)
    given = torch.randn(3, 6, 4, 2)
    again, per_token = HeldEnds(START).hold(given, levels, planner)
    assert torch.equal(again[:, 1:], given[:, 1:])
    assert torch.equal(per_token, levels)


def test_projection_leaves_no_point_inside(planner: Denoiser) -> None:
    assert (drawn(planner, None).flatten(0, 2) - zones().centres).norm(dim=1).min() < 0.4
    assert (drawn(planner, ZoneProjection(zones())).flatten(0, 2) - zones().centres).norm(dim=1).min() >= 0.4 - 1e-5
    late = drawn(planner, ZoneProjection(zones(), below=1))
    assert (late.flatten(0, 2) - zones().centres).norm(dim=1).min() < 0.4  # the last step is at timestep 12


def test_pushed_out_points_are_the_nearest_outside() -> None:
    centre, inside = torch.tensor([[0.3, -0.1]]), torch.tensor([[0.35, 0.05], [0.2, -0.3], [0.3, -0.1]])
    moved = pushed_out(inside, centre, 0.5)
    edge = torch.linspace(0, 2 * torch.pi, 100_000)[:, None]
    circle = centre + 0.5 * torch.cat([edge.cos(), edge.sin()], dim=1)
    assert torch.allclose((moved - inside).norm(dim=1), torch.cdist(inside, circle).amin(1), atol=1e-4)


def test_the_barrier_step_is_the_quadratic_programs_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    centre, radius, gain = torch.tensor([0.2, -0.3], dtype=torch.float64), 0.4, 0.7
    for _ in range(30):
        point, wanted = torch.randn(2, 2, generator=generator, dtype=torch.float64)
        found = barrier_step(point[None], wanted[None], centre[None], radius, gain)[0].numpy()
        p, c = point.numpy(), centre.numpy()
        slope, level = 2 * (p - c) / radius**2, ((p - c) ** 2).sum() / radius**2 - 1
        best = minimize(
            lambda x, wanted=wanted: ((x - wanted.numpy()) ** 2).sum(),
            p,
            jac=lambda x, wanted=wanted: 2 * (x - wanted.numpy()),
            constraints={
                "type": "ineq",
                "fun": lambda x, slope=slope, p=p, level=level: slope @ (x - p) + gain * level,
                "jac": lambda x, slope=slope: slope,
            },
            method="SLSQP",
            options={"ftol": 1e-12},
        )
        assert np.allclose(found, best.x, atol=1e-5)


def test_the_barrier_drives_plans_out_of_a_zone(planner: Denoiser) -> None:
    long = Sampler(steps=50)
    free = (drawn(planner, None, long).flatten(0, 2) - zones().centres).norm(dim=1)
    kept = (drawn(planner, ZoneBarrier(zones(), gain=0.5), long).flatten(0, 2) - zones().centres).norm(dim=1)
    assert (free < 0.4).sum() > 3 * (kept < 0.38).sum()


def test_guidance_raises_its_reward(planner: Denoiser) -> None:
    reward = NearGoal(GOAL)
    plain, guided = (reward(drawn(planner, g)).mean() for g in (None, LossGuidance(reward, scale=3.0)))
    assert guided > plain + 0.1
    g = zones()
    before, after = (g(drawn(planner, guide)).clamp(min=0).mean() for guide in (None, LossGuidance(g, scale=30.0)))
    assert after < 0.8 * before


def test_what_cannot_be_guided_is_told(planner: Denoiser) -> None:
    with pytest.raises(ValueError, match="a start, a goal or both, got neither"):
        HeldEnds()
    with pytest.raises(ValueError, match=r"the goal \[0.0, 0.5\] lies in a wall"):
        HeldEnds(goal=[0.0, 0.5], maze="##### #O#O# #OOO# #####")
    with pytest.raises(TypeError, match="LossGuidance needs a gradient, but JPEGCompressibility has none"):
        LossGuidance(JPEGCompressibility())
    with pytest.raises(ValueError, match="at least one guide"):
        Chain([])
    for make in (lambda: HeldEnds(START), lambda: ZoneProjection(zones()), lambda: ZoneBarrier(zones())):
        with pytest.raises(ValueError, match="expects plans of shape"):
            make().check_data((1, 28, 28))
        make().check_data(planner.sample_shape)


def test_a_projection_takes_the_zones_of_the_fit_it_serves(planner: Denoiser) -> None:
    open_ended = ZoneProjection()
    with pytest.raises(ValueError, match="ZoneProjection expects zones to put plans out of, got none"):
        drawn(planner, open_ended)
    with pytest.raises(ValueError, match="got none; give it zones, or fit under ForbiddenZones"):
        open_ended.bind([Walls("open")])
    other = ForbiddenZones("open", centres=[[-0.5, 0.5]], radius=0.3, margin=0.1)
    Chain([HeldEnds(START), open_ended]).bind([Walls("open"), zones(), other])
    plans = drawn(planner, open_ended).flatten(0, 2)
    assert (plans - zones().centres).norm(dim=1).min() >= 0.4 - 1e-5
    assert (plans - other.centres).norm(dim=1).min() >= 0.4 - 1e-5
    assert torch.equal(drawn(planner, open_ended), drawn(planner, ZoneProjection(zones()))) is False
    own = ZoneProjection(zones())
    own.bind([other])
    assert torch.equal(drawn(planner, own), drawn(planner, ZoneProjection(zones())))  # what was given stays
