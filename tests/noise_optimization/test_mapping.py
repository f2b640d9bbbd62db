"""From noise to samples: the same gradients at any budget, and Gaussian data, where all is known in closed form."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.noise_optimization.mapping import NoiseToSample
from constrained_diffusion.noise_optimization.memory import MemoryBudget
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer
from constrained_diffusion.noise_optimization.regularizers import Unregularized

STEPS, HIDDEN = 6, 32
MEAN, DEVIATION = 1.5, 0.4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Timed(nn.Module):
    """A random network on points of the plane that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.calls = nn.Linear(3, HIDDEN), nn.Linear(HIDDEN, 2), 0

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        self.calls += 1
        time = timesteps[:, None].to(noisy.dtype) / 100
        result: Tensor = self.last(self.first(torch.cat([noisy, time], 1)).tanh())
        return result


def mapping(
    schedule: VariancePreserving, eta: float = 0.0, budget: MemoryBudget = "minimal"
) -> tuple[NoiseToSample, Timed]:
    denoiser = Denoiser(Timed(), schedule, Normalizer(), sample_shape=(2,)).double().requires_grad_(False)
    sampler = Sampler(STEPS, eta)
    network: Any = denoiser.network
    return NoiseToSample(lambda contexts: denoiser.predict, schedule, sampler, memory_budget=budget), network


# --------------------------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_every_budget_gives_the_same_sample_and_gradient(schedule: VariancePreserving, eta: float) -> None:
    one_call = 3 * HIDDEN * 8 * 4  # at least the activations of three rows; clamps and concatenations come on top
    results = []
    for budget in ("unlimited", "minimal", one_call, 3 * one_call):
        sample, _ = mapping(schedule, eta, budget)  # type: ignore[arg-type]
        z = draw(3, sample.slices, 2).requires_grad_()
        clean = sample(z)
        results.append((clean.detach(), torch.autograd.grad(clean.square().sum(), z)[0]))
    assert results[0][1].abs().min() > 0
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@pytest.mark.parametrize(("budget", "calls"), [("unlimited", STEPS), ("minimal", 2 * STEPS)])
def test_each_step_is_called_once_and_again_where_nothing_is_kept(
    schedule: VariancePreserving, budget: MemoryBudget, calls: int
) -> None:
    sample, network = mapping(schedule, 1.0, budget)
    z = draw(3, sample.slices, 2)
    sample(z)
    assert network.calls == STEPS  # without gradient
    sample(z.requires_grad_()).sum().backward()
    assert network.calls == STEPS + calls


def test_a_budget_keeps_what_fits_and_is_measured_once_per_batch_size(schedule: VariancePreserving) -> None:
    sample, network = mapping(schedule, 0.0, 1)
    z = draw(3, sample.slices, 2).requires_grad_()
    with pytest.raises(ValueError, match=r"memory_budget is 1 bytes, but the activations .* are (\d+)") as error:
        sample(z)
    needed = int(str(error.value).split("are ")[1].split(";")[0])
    assert needed >= 3 * HIDDEN * 8
    assert network.calls == 1

    sample, network = mapping(schedule, 0.0, 2 * needed + needed // 2)
    sample(z).sum().backward()
    assert network.calls == 1 + STEPS + (STEPS - 2)  # one to measure; two of the steps are kept
    sample(z).sum().backward()
    assert network.calls == 1 + 2 * (STEPS + STEPS - 2)
    sample(z[:1]).sum().backward()  # a third of the batch is measured anew, and all its steps are kept
    assert network.calls == 1 + 2 * (STEPS + STEPS - 2) + 1 + STEPS


def test_what_is_no_budget_is_refused(schedule: VariancePreserving) -> None:
    with pytest.raises(ValueError, match="memory_budget must be"):
        mapping(schedule, budget="some")  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gradcheck(schedule: VariancePreserving, eta: float) -> None:
    sample, _ = mapping(schedule, eta)
    assert torch.autograd.gradcheck(sample, draw(2, sample.slices, 2).requires_grad_())


@pytest.mark.parametrize(("eta", "slices"), [(0.0, 1), (1.0, STEPS)])  # the step onto alpha-bar = 1 injects none
def test_z_has_a_slice_for_each_noise_that_is_read(schedule: VariancePreserving, eta: float, slices: int) -> None:
    sample, _ = mapping(schedule, eta)
    assert sample.slices == slices
    assert sample(draw(2, slices, 2)).shape == (2, 2)
    with pytest.raises(ValueError, match=f"needs {slices} slices"):
        sample(draw(2, slices + 1, 2))


def test_contexts_reach_the_predictor_and_the_result_is_finished(schedule: VariancePreserving, exact: Any) -> None:
    seen: list[list[Any]] = []

    def predictor(contexts: list[Any]) -> Any:
        seen.append(contexts)
        means = torch.tensor([[0.0 if c is None else float(c)] for c in contexts], dtype=torch.float64)
        return exact(schedule, means, 1e-6)  # data that are all at the mean

    sample = NoiseToSample(predictor, schedule, Sampler(STEPS), finish=lambda x: 10 * x)
    torch.testing.assert_close(
        sample(draw(2, 1, 1), [3.0, -1.0]), torch.tensor([[30.0], [-10.0]]).double(), atol=1e-2, rtol=0
    )
    sample(draw(3, 1, 1))
    assert seen == [[3.0, -1.0], [None, None, None]]


# -------------------------------------------------------------------------------------------------------- Gaussian data


def gaussian(schedule: VariancePreserving, exact: Any, eta: float) -> NoiseToSample:
    predict = exact(schedule, MEAN, DEVIATION**2)
    sampler = Sampler(STEPS, eta, clip_sample=False)
    return NoiseToSample(lambda contexts: predict, schedule, sampler, memory_budget="unlimited")


def factors(schedule: VariancePreserving, eta: float) -> list[float]:
    """How much the sample moves with each slice of z, by the recursion x' = a x + const + sigma z."""
    abar = schedule.alphas_cumprod.double().tolist()
    moves: list[float] = [1.0]
    times = [level.timestep for level, _ in Sampler(STEPS, eta).pairs(schedule)]
    for now, then in pairwise([*(abar[int(t)] for t in times), 1.0]):
        total = now * DEVIATION**2 + 1 - now
        clean, noise = now**0.5 * DEVIATION**2 / total, (1 - now) ** 0.5 / total
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
        step = then**0.5 * clean + (1 - then - sigma**2) ** 0.5 * noise
        moves = [step * move for move in moves] + ([sigma] if sigma > 0 else [])
    return moves


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_sample_is_affine_in_z_with_the_slope_of_the_recursion(
    schedule: VariancePreserving, exact: Any, eta: float
) -> None:
    sample = gaussian(schedule, exact, eta)
    z = draw(5, sample.slices, 1).requires_grad_()
    clean, slopes = sample(z), torch.tensor(factors(schedule, eta), dtype=torch.float64)
    assert sample.slices == len(slopes)
    (gradient,) = torch.autograd.grad(clean.sum(), z)
    torch.testing.assert_close(gradient[..., 0], slopes.expand(5, -1), rtol=1e-6, atol=1e-8)
    at_zero = sample(torch.zeros(1, sample.slices, 1, dtype=torch.float64))
    torch.testing.assert_close(clean, at_zero + (z[..., 0] @ slopes)[:, None], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_optimised_noise_reaches_the_optimum_of_a_quadratic_reward(
    schedule: VariancePreserving, exact: Any, eta: float
) -> None:
    sample = gaussian(schedule, exact, eta)
    target = torch.tensor([MEAN + 2 * DEVIATION, MEAN - DEVIATION], dtype=torch.float64)
    optimizer = NoiseOptimizer(
        sample, lambda x: -(x - target).square().sum(1), steps=80, regularizer=Unregularized(), permutations=0,
        optimizer=partial(torch.optim.Adam, lr=0.1), max_grad_norm=None,
    )  # fmt: skip
    for record in optimizer.run(draw(3, sample.slices, 2)):
        assert record.rewards[0] < -0.01
        assert -1e-3 < record.reward <= 0
        assert (record.sample - target).abs().max() < 0.05
        torch.testing.assert_close(sample(record.noise[None])[0], record.sample)
        if eta == 0:  # the map can be inverted
            at_zero = sample(torch.zeros(1, 1, 2, dtype=torch.float64))[0]
            slope = factors(schedule, eta)[0]
            torch.testing.assert_close(record.noise[0], (target - at_zero) / slope, atol=0.1, rtol=0)


def test_a_prediction_is_asked_at_the_samplers_timesteps(schedule: VariancePreserving) -> None:
    seen: list[list[int]] = []

    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        seen.append(timesteps.tolist())
        return Prediction(noisy, noisy, noisy)

    sampler = Sampler(STEPS)
    NoiseToSample(lambda contexts: predict, schedule, sampler)(draw(2, 1, 1))
    assert seen == [[level.timestep] * 2 for level, _ in sampler.pairs(schedule)]
