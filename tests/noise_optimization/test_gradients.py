"""Every estimator against the closed form on x = A z, where r is linear or quadratic."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from constrained_diffusion.noise_optimization.gradients import (
    ZOSGD,
    Exact,
    GradientEstimator,
    Hybrid1,
    Hybrid2,
    Perturbed,
)
from constrained_diffusion.noise_optimization.problem import Problem

PERTURBING = [ZOSGD, Hybrid1, Hybrid2]
MANY = 2000


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A = torch.linalg.qr(draw(6, 4)).Q.T @ torch.diag(torch.tensor([1.2, 1.1, 1.0, 1.0, 0.9, 0.9], dtype=torch.float64))
B = draw(4, seed=1)  # the linear reward's direction, the quadratic one's centre
Z = draw(3, 6, seed=2)


def linear(x: Tensor, context: list[Any]) -> Tensor:
    return x @ B


def quadratic(x: Tensor, context: list[Any]) -> Tensor:
    return -(x - B).square().sum(1) / 2


def rounded(x: Tensor, context: list[Any]) -> Tensor:
    """A black box: python's own numbers."""
    return torch.tensor([round(sum(a * b for a, b in zip(row, B.tolist(), strict=True)), 1) for row in x.tolist()])


SLOPES = {linear: lambda x: B.expand_as(x), quadratic: lambda x: B - x}  # dr / dx


def problem(reward: Any, rows: int = 3, first: int = 0) -> Problem:
    return Problem(lambda z, _: z @ A.T, reward, [None] * rows, [(9, row) for row in range(first, first + rows)])


def ratio(a: Tensor, b: Tensor) -> list[float]:
    return (a.norm(dim=1) / b.norm(dim=1)).tolist()


# --------------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("reward", SLOPES)
def test_exact_is_the_closed_form(reward: Any) -> None:
    found = Exact()(problem(reward), Z)
    torch.testing.assert_close(found.gradient, SLOPES[reward](Z @ A.T) @ A)
    torch.testing.assert_close(found.clean, Z @ A.T)
    torch.testing.assert_close(found.reward, reward(Z @ A.T, []))


@pytest.mark.parametrize("reward", SLOPES)
@pytest.mark.parametrize("cls", PERTURBING)
def test_many_perturbations_find_the_direction(cls: Any, reward: Any) -> None:
    found, slope = cls(perturbations=MANY)(problem(reward), Z), SLOPES[reward](Z @ A.T)
    expected = slope @ A
    assert cosine_similarity(found.gradient, expected).min() > 0.95
    if cls is Hybrid2:  # samples move along A only, so that H is A A^T dr/dx
        expected = slope @ A @ A.T @ A
        assert cosine_similarity(found.gradient, expected).min() > 0.99
    assert ratio(found.gradient, expected) == pytest.approx([1.0] * 3, abs=0.12)
    torch.testing.assert_close(found.clean, Z @ A.T)
    torch.testing.assert_close(found.reward, reward(Z @ A.T, []))


@pytest.mark.parametrize("cls", PERTURBING)
def test_the_scale_does_not_depend_on_mu(cls: Any) -> None:
    first, second = (cls(perturbations=4, mu=mu)(problem(linear), Z).gradient for mu in (0.5, 0.01))
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cls", PERTURBING)
def test_a_black_box_is_enough_for_those_that_perturb(cls: Any) -> None:
    found = cls(perturbations=MANY, mu=0.5)(problem(rounded), Z)
    assert cosine_similarity(found.gradient, (B @ A).expand_as(Z)).min() > 0.95


def test_exact_refuses_a_black_box() -> None:
    with pytest.raises(TypeError, match=r"gives no gradient .* \(Hybrid2, Hybrid1, ZOSGD\), or do not detach"):
        Exact()(problem(rounded), Z)


def test_only_exact_says_that_it_needs_a_gradient() -> None:
    assert Exact.needs_gradient
    assert not any(cls.needs_gradient for cls in PERTURBING)


def test_zosgd_runs_a_sampler_without_a_derivative() -> None:
    blind = problem(linear)._replace(sample=lambda z, _: torch.from_numpy(z.numpy() @ A.numpy().T))
    assert cosine_similarity(ZOSGD(MANY)(blind, Z).gradient, (B @ A).expand_as(Z)).min() > 0.95


# ----------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("estimator", [Exact(), ZOSGD(4), Hybrid1(4), Hybrid2(4)])
def test_nothing_keeps_a_graph_and_the_noise_is_left_alone(estimator: GradientEstimator) -> None:
    noise = Z.clone()
    assert not any(part.requires_grad for part in estimator(problem(quadratic), noise))
    assert torch.equal(noise, Z)
    assert not noise.requires_grad


@pytest.mark.parametrize("estimator", [Exact(), ZOSGD(4), Hybrid1(4), Hybrid2(4)])
def test_a_row_does_not_know_its_neighbours(estimator: GradientEstimator) -> None:
    together = estimator(problem(quadratic), Z)
    for row in range(3):
        alone = estimator(problem(quadratic, 1, first=row), Z[row : row + 1])
        for ours, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(ours[0], theirs[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", PERTURBING)
def test_perturbations_differ_between_rows_and_follow_the_key(cls: Any) -> None:
    same_noise = Z[:1].expand(3, -1)
    gradient = cls(4)(problem(quadratic), same_noise).gradient
    assert not torch.allclose(gradient[0], gradient[1])
    assert torch.equal(gradient, cls(4)(problem(quadratic), same_noise).gradient)
    assert not torch.allclose(gradient, cls(4)(problem(quadratic, first=3), same_noise).gradient)


@pytest.mark.parametrize("cls", PERTURBING)
@pytest.mark.parametrize(("batch_size", "at_once"), [(1, 3), (3, 3), (8, 6), (100, 15), (None, 15)])
def test_batch_size_splits_the_work_and_changes_nothing(cls: Any, batch_size: int | None, at_once: int) -> None:
    seen: list[int] = []

    def reward(x: Tensor, context: list[Any]) -> Tensor:
        seen.append(len(x))
        return quadratic(x, context)

    found = cls(5, batch_size=batch_size)(problem(reward), Z).gradient
    torch.testing.assert_close(found, cls(5)(problem(quadratic), Z).gradient, rtol=1e-9, atol=1e-9)
    assert max(seen) == at_once
    assert sum(seen) == 3 + 15  # the samples themselves, then five perturbed ones of each


@pytest.mark.parametrize("cls", PERTURBING)
def test_normalised_estimates_have_norm_one(cls: Any) -> None:
    identity = problem(quadratic)._replace(sample=lambda z, _: z[:, :4] * 1.0)  # so that the gradient shows H itself
    plain, unit = (cls(4, normalize=normalize)(identity, Z).gradient for normalize in (False, True))
    torch.testing.assert_close(unit, plain / plain.norm(dim=1, keepdim=True))
    flat = identity._replace(reward=lambda x, _: x.new_ones(len(x)))
    assert not cls(4, normalize=True)(flat, Z).gradient.any()


@pytest.mark.parametrize("cls", PERTURBING)
def test_contexts_are_repeated_as_the_rows_are(cls: Any) -> None:
    factors = [1.0, -2.0, 50.0]

    def sample(z: Tensor, context: list[float]) -> Tensor:
        assert len(context) == len(z)
        return z @ A.T + 1000 * torch.tensor(context, dtype=z.dtype)[:, None]

    def reward(x: Tensor, context: list[float]) -> Tensor:  # a wrong context would show as a jump of thousands
        weights = torch.tensor(context, dtype=x.dtype)
        return weights * ((x - 1000 * weights[:, None]) @ B)

    given = problem(reward)._replace(sample=sample, context=factors)
    found = cls(7, batch_size=6)(given, Z).gradient
    alone = cls(7)(problem(linear), Z).gradient
    torch.testing.assert_close(found, torch.tensor(factors, dtype=Z.dtype)[:, None] * alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"perturbations": 0}, "got 0, 0.01, None"), ({"mu": 0.0}, "got 4, 0.0, None"), ({"batch_size": 0}, "0.01, 0")],
)
def test_settings_out_of_range_are_refused(settings: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"perturbations >= 1, mu > 0 and batch_size >= 1; .*{told}"):
        Hybrid1(**{"perturbations": 4, **settings})


# ---------------------------------------------------------------------------------------------------------------- ranks


def test_two_ranks_share_the_perturbations_of_one(tmp_path: Path, run_program: Any) -> None:
    program = Path(__file__).with_name("estimate_ranks.py")
    run_program(program, tmp_path)
    alone = runpy.run_path(str(program))["estimates"]()
    assert alone.keys() == {cls.__name__ for cls in PERTURBING}
    for rank in (0, 1):
        assert_close = torch.testing.assert_close
        assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, rtol=1e-4, atol=1e-5)
    # Each rank's own reward and sampler were a little off, as in rounding; what they go on with is the same to the bit.
    first, second = (torch.load(tmp_path / f"off-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, (reward, gradient) in first.items():
        assert torch.equal(reward, second[name][0])
        assert torch.equal(gradient, second[name][1])


def test_without_sharding_a_process_draws_all_perturbations() -> None:
    class Counting(Perturbed):
        def __call__(self, problem: Problem, noise: Tensor) -> Any:
            return self._average(problem, noise, noise[:, :1], lambda xi, _: xi.new_ones(len(xi), 1))

    assert Counting(5)(problem(linear), Z).tolist() == [[1.0]] * 3
    assert Counting(5, shard=True)(problem(linear), Z).tolist() == [[1.0]] * 3  # alone: no process group
