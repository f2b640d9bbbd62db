"""The forward process against diffusers' DDPMScheduler and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving

KINDS = ["epsilon", "sample", "v_prediction"]


def pair(kind: str, **settings: Any) -> tuple[DDPMScheduler, VariancePreserving]:
    """The same schedule twice: diffusers' and ours, of 50 steps."""
    config = {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2", "prediction_type": kind, **settings}
    return DDPMScheduler(**config), DiffusersSchedule(config)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_add_noise_is_diffusers(beta_schedule: str) -> None:
    scheduler, schedule = pair("epsilon", beta_schedule=beta_schedule)
    clean, noise, timesteps = draw(50, 2, 3), draw(50, 2, 3, seed=1), torch.arange(50)
    torch.testing.assert_close(
        schedule.add_noise(clean, noise, timesteps), scheduler.add_noise(clean, noise, timesteps), rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_target_is_what_diffusers_trains_on(kind: str) -> None:
    scheduler, schedule = pair(kind)
    clean, noise, timesteps = draw(50, 4), draw(50, 4, seed=1), torch.arange(50)
    velocity = scheduler.get_velocity(clean, noise, timesteps)
    expected = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[kind]
    torch.testing.assert_close(schedule.target(clean, noise, timesteps), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(50, 3, 2, 2), (50, 7)])
def test_the_target_gives_back_clean_sample_and_noise(kind: str, shape: tuple[int, ...]) -> None:
    _, schedule = pair(kind)
    clean, noise = draw(*shape, dtype=torch.float64), draw(*shape, seed=1, dtype=torch.float64)
    timesteps = torch.arange(50)
    noisy, output = schedule.add_noise(clean, noise, timesteps), schedule.target(clean, noise, timesteps)
    torch.testing.assert_close(schedule.to_clean(output, noisy, timesteps), clean, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.to_noise(output, noisy, timesteps), noise, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_one_noise_level_per_token_is_each_token_on_its_own(kind: str) -> None:
    _, schedule = pair(kind)
    clean, noise, output = (draw(2, 5, 3, seed=s) for s in range(3))
    timesteps = torch.tensor([[0, 10, 20, 30, 49], [5, 5, 5, 5, 5]])
    noisy = schedule.add_noise(clean, noise, timesteps)
    found = schedule.to_clean(output, noisy, timesteps)
    for token in range(5):
        at = timesteps[:, token]
        alone = schedule.add_noise(clean[:, token], noise[:, token], at)
        torch.testing.assert_close(noisy[:, token], alone)
        torch.testing.assert_close(found[:, token], schedule.to_clean(output[:, token], alone, at))


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights(kind: str) -> None:
    _, schedule = pair(kind)
    abar, gamma = schedule.alphas_cumprod.double(), 5.0
    # Hang et al. weigh ||x0 - x0_hat||^2 by min(SNR, gamma); the other targets' errors are multiples of it:
    # ||eps error||^2 = SNR ||x0 error||^2, and ||v error||^2 = (SNR + 1) ||x0 error||^2.
    snr = abar / (1 - abar)
    per_clean_error = {"epsilon": snr, "sample": torch.ones(50, dtype=torch.float64), "v_prediction": snr + 1}[kind]
    expected = torch.minimum(snr, torch.tensor(gamma, dtype=torch.float64)) / per_clean_error
    weights = schedule.loss_weight(torch.arange(50), gamma)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_floor_keeps_the_weight_of_high_noise_whatever_the_target(kind: Any) -> None:
    abar = torch.linspace(0.999, 0.001, 50, dtype=torch.float64)
    schedule, times = VariancePreserving(abar.float(), kind), torch.arange(50)
    clean, noisy = torch.zeros(50, 1, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    wrong = schedule.from_clean(clean + 0.1, noisy, times) - schedule.from_clean(clean, noisy, times)
    weighted = schedule.loss_weight(times, 20.0, 1.0) * wrong[:, 0].square()
    expected = 0.01 * (abar / (1 - abar)).clamp(1.0, 20.0)  # the same error of the clean sample
    torch.testing.assert_close(weighted.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_the_weight_is_finite_without_any_signal(kind: Any) -> None:
    first, last = VariancePreserving([0.5, 0.0], kind).loss_weight(torch.tensor([0, 1]), 5.0).tolist()
    assert first == {"sample": 1.0, "v_prediction": 0.5}[kind]
    assert last == pytest.approx(0.0, abs=1e-30)


def test_half_precision_keeps_the_small_noise_levels() -> None:
    schedule = VariancePreserving([0.9999, 0.5])
    _, sigma = schedule.coefficients(torch.tensor([0]), torch.zeros(1, dtype=torch.bfloat16))
    assert sigma.dtype == torch.bfloat16
    assert sigma.item() == pytest.approx(0.01, rel=1e-2)  # bfloat16's own 1 - 0.9999 is 0


@pytest.mark.parametrize(
    ("alphas_cumprod", "message"),
    [
        ([0.5, 0.6], r"never rising; got shape \(2,\) with values from 0.5 to 0.6"),
        ([1.5, 0.5], r"in \[0, 1\]"),
        ([[0.5]], r"got shape \(1, 1\)"),
        ([], "no values"),
        ([float("nan"), 0.5], r"in \[0, 1\]"),
    ],
)
def test_a_wrong_schedule_is_refused(alphas_cumprod: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VariancePreserving(alphas_cumprod)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon, sample, v_prediction, got 'flow_prediction'; for a flow"):
        VariancePreserving([0.5], "flow_prediction")  # type: ignore[arg-type]


def test_the_normaliser_is_torchvisions() -> None:
    images, mean, std = torch.rand(4, 3, 5, 5), 0.3, 0.7
    functional = pytest.importorskip("torchvision.transforms.functional", reason="torchvision is not installed")
    normalized = Normalizer(mean, std).encode(images)
    torch.testing.assert_close(normalized, functional.normalize(images, [mean] * 3, [std] * 3))
    torch.testing.assert_close(Normalizer(mean, std).decode(normalized), images)


def test_the_clamp_passes_gradients_straight_through_and_is_exact() -> None:
    codec = Normalizer(mean=0.1307, std=0.3081, low=0.0, high=1.0)
    x = torch.tensor([-31234.567, 0.3, 17654.321], requires_grad=True)  # as large as x-hat gets at the last timesteps
    clamped = codec.clamp(x)
    expected = torch.tensor([-0.1307 / 0.3081, 0.3, 0.8693 / 0.3081])
    torch.testing.assert_close(clamped, expected, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad((clamped * torch.arange(1.0, 4.0)).sum(), x)
    assert gradient.tolist() == [1.0, 2.0, 3.0]


def test_an_open_side_is_not_clamped() -> None:
    x = torch.tensor([-9.0, 9.0])
    assert Normalizer(low=0.0).clamp(x).tolist() == [0.0, 9.0]
    assert Normalizer(high=0.0).clamp(x).tolist() == [-9.0, 0.0]
    assert Normalizer().clamp(x) is x


@pytest.mark.parametrize(
    ("settings", "message"), [({"std": 0.0}, "std > 0"), ({"low": 1.0, "high": 1.0}, "low < high")]
)
def test_a_wrong_normaliser_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalizer(**settings)  # type: ignore[arg-type]
