"""DDIM against diffusers' DDIMScheduler, finite differences, and Gaussian data with its exact denoiser."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.prediction import Predict, Prediction
from constrained_diffusion.diffusion.sampler import Sampler, sample, seeded_noise
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving

T = 100


def cosine(kind: Any = "epsilon", steps: int = T, start: float = 0.05) -> VariancePreserving:
    return VariancePreserving(torch.cos(torch.linspace(start, 1.5, steps, dtype=torch.float64)) ** 2, kind)


def smooth(schedule: VariancePreserving, limit: float | None = None) -> Predict:
    """A tiny smooth network; its clean sample is clamped to [-limit, limit]."""

    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        output = torch.sin(noisy * 1.3 + timesteps.to(noisy)[:, None] / 40) + 0.2 * noisy.flip(-1)
        clean = schedule.to_clean(output, noisy, timesteps)
        clean = clean if limit is None else clean.clamp(-limit, limit)
        return Prediction(output, schedule.to_noise(output, noisy, timesteps), clean)

    return predict


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(schedule: NoiseSchedule, sampler: Sampler) -> list[float]:
    """The timesteps at which the denoiser is called."""
    return [level.timestep for level, _ in sampler.pairs(schedule)]


# ---------------------------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("total", [100, 1000])
def test_timesteps_are_diffusers_for_every_number_of_steps(spacing: Any, total: int) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=total, timestep_spacing=spacing)
    schedule, too_long = cosine(steps=total), []
    for steps in range(1, total + 1):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        if len(theirs) != steps:  # rounding in numpy's arange: one more step, at t = -1
            assert theirs.pop() == -1
            too_long.append(steps)
        assert times(schedule, Sampler(steps, spacing=spacing)) == theirs, steps
    assert len(too_long) < total / 10
    assert not too_long or spacing == "trailing"


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 20, 100])
def test_pairs_form_one_chain_down_to_the_end(spacing: Any, steps: int) -> None:
    pairs = Sampler(steps, spacing=spacing).pairs(cosine())
    assert [following for _, following in pairs[:-1]] == [level for level, _ in pairs[1:]]
    assert pairs[-1][1][1:] == (1.0, 0.0)
    assert all(level.timestep > following.timestep for level, following in pairs[:-1])
    assert all(level.sigma > following.sigma for level, following in pairs)


def test_the_offset_of_stable_diffusion() -> None:
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(50)
    sampler = Sampler(50, spacing="leading", steps_offset=1)
    assert times(cosine(steps=1000), sampler) == scheduler.timesteps.tolist()


# ---------------------------------------------------------------------------------------------------- against diffusers


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0)])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_is_diffusers(kind: Any, eta: float, spacing: Any, offset: int, to_one: bool, clip: bool) -> None:
    schedule, steps = cosine(kind), 10  # 10 divides T: diffusers' own previous step, t - T // n, is on the grid
    sampler = Sampler(steps, eta, spacing, offset, set_alpha_to_one=to_one, clip_sample=clip)
    z = draw(3, 1 + sampler.injecting_steps(cosine()), 4)
    scheduler = DDIMScheduler(
        num_train_timesteps=T,
        prediction_type=kind,
        timestep_spacing=spacing,
        steps_offset=offset,
        clip_sample=clip,
        clip_sample_range=0.8,
    )
    scheduler.alphas_cumprod = schedule.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.tensor(1.0) if to_one else scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    predict = smooth(schedule, 0.8)
    expected = z[:, 0]
    # Where the last step has nothing to inject, z has no slice for it; diffusers multiplies what it is given by 0.
    slices = [*z[:, 1:].unbind(1), torch.full_like(expected, 1e6)][:steps]
    for t, noise in zip(scheduler.timesteps, slices if eta else [None] * steps, strict=True):
        output = predict(expected, t.expand(3)).output
        expected = scheduler.step(output, int(t), expected, eta=eta, variance_noise=noise).prev_sample
    torch.testing.assert_close(sample(predict, schedule, z, sampler), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [7, 30])
def test_every_slice_of_z_is_read(spacing: Any, steps: int) -> None:
    for to_one in (True, False):
        for offset in (0, 1) if spacing == "leading" else (0,):
            sampler = Sampler(steps, 1.0, spacing, offset, set_alpha_to_one=to_one)
            z = draw(1, 1 + sampler.injecting_steps(cosine()), 2).requires_grad_()
            (gradient,) = torch.autograd.grad(sample(smooth(cosine()), cosine(), z, sampler).sum(), z)
            assert (gradient.abs().amax(-1) > 1e-12).all(), (to_one, offset)


def test_a_last_step_from_zero_to_zero_injects_nothing() -> None:
    sampler = Sampler(10, 1.0, "leading", set_alpha_to_one=False)
    first, last = sampler.pairs(cosine())[-1]
    assert first == last
    assert sampler.injecting_steps(cosine()) == 9
    assert Sampler(10, 1.0, "trailing", set_alpha_to_one=False).injecting_steps(cosine()) == 10
    assert Sampler(10, 0.0).injecting_steps(cosine()) == 0


# -------------------------------------------------------------------------------- against other forms of the same step


def grid(spacing: str, n: int) -> list[int]:
    """The n timesteps from noisy to clean, in exact fractions of T; halves are rounded to even numbers."""
    return {
        "leading": [i * (T // n) for i in range(n)][::-1],
        "trailing": [round(Fraction(T * i, n)) - 1 for i in range(1, n + 1)][::-1],
        "linspace": [round(Fraction((T - 1) * i, n - 1)) for i in range(n)][::-1],
    }[spacing]


def reference(
    kind: str, eta: float, times: list[int], levels: np.ndarray, last: float, noises: list[np.ndarray]
) -> np.ndarray:
    """DDIM by eq. 13 of its paper (eta = 0), and by the posterior of DDPM, q(x_prev | x_t, x_0) (eta = 1)."""
    x, *injected = noises
    for t, a, previous in zip(times, levels[times], [*levels[times[1:]], last], strict=True):
        output = np.sin(x * 1.3 + t / 40) + 0.2 * x[:, ::-1]  # what `smooth` gives
        s, n = np.sqrt(a), np.sqrt(1 - a)
        said = {"epsilon": [0, 1], "sample": [1, 0], "v_prediction": [-n, s]}[kind]  # of the clean sample and the noise
        clean, noise = np.linalg.solve([[s, n], said], np.stack([x.ravel(), output.ravel()])).reshape(2, *x.shape)
        if eta == 0:
            x = np.sqrt(previous) * (x / s + (np.sqrt(1 / previous - 1) - np.sqrt(1 / a - 1)) * noise)
            continue
        alpha, beta = a / previous, 1 - a / previous
        x = np.sqrt(previous) * beta / (1 - a) * clean + np.sqrt(alpha) * (1 - previous) / (1 - a) * x
        variance = (1 - previous) / (1 - a) * beta
        x = x + np.sqrt(variance) * injected.pop(0) if variance > 0 else x
    assert not injected
    return x


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("n", [7, 10, 13])  # 7 and 13 do not divide T
def test_ddim_steps_over_neighbours_of_the_grid(spacing: Any, kind: Any, eta: float, to_one: bool, n: int) -> None:
    schedule, sampler = cosine(kind), Sampler(n, eta, spacing, set_alpha_to_one=to_one, clip_sample=False)
    levels = schedule.alphas_cumprod.double().numpy()
    z = draw(3, 1 + sampler.injecting_steps(cosine()), 4)
    noises = list(z.numpy().swapaxes(0, 1))
    expected = reference(kind, eta, grid(spacing, n), levels, 1.0 if to_one else levels[0], noises)
    found = sample(smooth(schedule), schedule, z, sampler)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-10)


# ----------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_gradients_reach_all_of_z(eta: float, kind: Any) -> None:
    schedule, sampler = cosine(kind), Sampler(4, eta, clip_sample=False)
    z = draw(2, 1 + sampler.injecting_steps(cosine()), 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda noise: sample(smooth(schedule), schedule, noise, sampler), z)


def test_the_gradient_passes_what_is_clipped() -> None:
    z, clipped = draw(8, 1, 3).requires_grad_(), Sampler(1, clip_sample=True, clip_range=0.1)
    found, free = (sample(smooth(cosine()), cosine(), z, by) for by in (clipped, Sampler(1, clip_sample=False)))
    torch.testing.assert_close(found, free.clamp(-0.1, 0.1))
    assert (found != free).any(dim=1).all()
    for a, b in zip(*(torch.autograd.grad(x.sum(), z) for x in (found, free)), strict=True):
        torch.testing.assert_close(a, b)


def exact(schedule: VariancePreserving, mean: float, variance: float) -> Predict:
    """The exact denoiser of data ~ N(mean, variance)."""

    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        signal, sigma = schedule.coefficients(timesteps, noisy)
        output = sigma * (noisy - signal * mean) / (signal**2 * variance + sigma**2)
        return Prediction(output, output, schedule.to_clean(output, noisy, timesteps))

    return predict


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_gaussian_data_comes_out_in_closed_form_at_first_order(spacing: Any) -> None:
    mean, deviation = 1.5, 0.4
    z = draw(256, 1, 1)
    errors = []
    for steps in (50, 200, 800):
        schedule = cosine(steps=800, start=0.002)  # so that the last jump, onto alpha-bar = 1, is small too
        abar = schedule.alphas_cumprod.double()
        # The flow of eta = 0 keeps (x_t - sqrt(abar) mean) / sqrt(abar variance + 1 - abar) constant, down to abar = 1.
        first = (z[:, 0] - abar[-1].sqrt() * mean) / (abar[-1] * deviation**2 + 1 - abar[-1]).sqrt()
        sampler = Sampler(steps, spacing=spacing, clip_sample=False)
        drawn = sample(exact(schedule, mean, deviation**2), schedule, z, sampler)
        errors.append((drawn - (mean + deviation * first)).abs().max().item())
    assert errors[2] < 0.005
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # 4 times the steps, a quarter of the error
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_stochastic_samples_of_gaussian_data_have_its_moments() -> None:
    schedule, sampler = cosine(steps=400), Sampler(400, eta=1.0, clip_sample=False)
    n = 4000
    z = draw(n, 1 + sampler.injecting_steps(schedule), 1)
    drawn = sample(exact(schedule, 1.5, 0.16), schedule, z, sampler)
    assert drawn.mean().item() == pytest.approx(1.5, abs=4 * 0.4 / n**0.5)  # four standard errors
    assert drawn.std().item() == pytest.approx(0.4, rel=4 / (2 * n) ** 0.5 + 0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_dtype_of_z_is_kept(dtype: torch.dtype) -> None:
    for eta in (0.0, 1.0):
        sampler = Sampler(5, eta)
        z = draw(2, 1 + sampler.injecting_steps(cosine()), 3)
        drawn = sample(smooth(cosine(), 1.0), cosine(), z.to(dtype), sampler)
        assert drawn.dtype == dtype
        torch.testing.assert_close(
            drawn.double(),
            sample(smooth(cosine(), 1.0), cosine(), z, sampler),
            rtol=0,
            atol=20 * torch.finfo(dtype).eps,
        )


def test_the_hook_sees_every_clean_prediction_and_its_answer_is_used() -> None:
    schedule, seen = cosine(), []

    def to_three(clean: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(int(timesteps[0]))
        return torch.full_like(clean, 3.0)

    sampler = Sampler(5)
    drawn = sample(smooth(schedule), schedule, draw(2, 1, 3), sampler, on_clean=to_three)
    assert seen == times(schedule, sampler)
    assert (drawn == 3.0).all()  # the last step ends on the clean prediction itself


def test_progress_wraps_the_steps() -> None:
    lengths: list[int] = []

    def watch(pairs: Any) -> Any:
        lengths.append(len(pairs))
        return pairs

    sample(smooth(cosine()), cosine(), draw(1, 1, 2), Sampler(6), progress=watch)
    assert lengths == [6]


def test_seeded_noise_of_a_seed_does_not_know_its_neighbours() -> None:
    sampler = Sampler(4, eta=1.0)
    together = seeded_noise([7, 8, 9], (1, 3, 3), sampler, cosine())
    assert together.shape == (3, 4, 1, 3, 3)
    for row, seed in enumerate([7, 8, 9]):
        assert torch.equal(together[row : row + 1], seeded_noise([seed], (1, 3, 3), sampler, cosine()))
    assert not torch.equal(together[0], together[1])


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("eta", "given", "expected"), [(0.0, 2, 1), (1.0, 1, 5), (1.0, 6, 5)])
def test_a_wrong_number_of_slices_is_refused(eta: float, given: int, expected: int) -> None:
    with pytest.raises(ValueError, match=rf"needs {expected} slices .* eta={eta}; got {given}"):
        sample(smooth(cosine()), cosine(), draw(1, given, 2), Sampler(5, eta))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"eta": -0.1}, {"eta": 1.1}])
def test_settings_out_of_range_are_refused(settings: Any) -> None:
    with pytest.raises(ValueError, match=r"steps >= 1 and eta in \[0, 1\]"):
        Sampler(**settings)


@pytest.mark.parametrize("spacing", ["even", "karras_even"])
def test_an_unknown_spacing_is_refused(spacing: str) -> None:
    with pytest.raises(ValueError, match=r"leading, trailing, linspace, .*, karras, exponential .* got '.*even'"):
        Sampler(spacing=spacing).pairs(cosine())


def test_more_steps_than_the_schedule_has_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 100 steps, the schedule's length, got 101"):
        Sampler(101).pairs(cosine())


def test_an_offset_out_of_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"steps_offset=1 puts the timesteps in \[1, 100\], outside .*\[0, 99\]"):
        Sampler(100, spacing="leading", steps_offset=1).pairs(cosine())
