from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.noise_schedule import NoiseSchedule
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.diffusion.sampler import Sampler, sample, seeded_noise
from constrained_diffusion.diffusion.token_sampler import PyramidSampler, pyramid, token_sample
from constrained_diffusion.diffusion.variance_exploding import VarianceExploding
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.domains.mazes.planners import RecurrentPlanner, TransformerPlanner


@pytest.fixture(params=["epsilon", "sample", "v_prediction"])
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    torch.manual_seed(0)
    network = TransformerPlanner((5, 4, 2), width=16, depth=1, heads=2, feedforward=16)
    config = {"num_train_timesteps": 100, "beta_schedule": "linear", "prediction_type": request.param}
    return Denoiser(network.eval().requires_grad_(False), DiffusersSchedule(config), Normalizer())


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("clip", [{}, {"clip_sample": True, "clip_range": 0.4}])
def test_the_full_sequence_is_plain_ddim(denoiser: Denoiser, eta: float, final: bool, clip: dict[str, Any]) -> None:
    sampler = Sampler(steps=7, eta=eta, set_alpha_to_one=final, **clip)
    z = seeded_noise(range(3), denoiser.sample_shape, sampler, denoiser.noise_schedule)
    whole = pyramid(7, 5, lag=0)
    expected = sample(denoiser.predict, denoiser.noise_schedule, z, sampler)
    found = token_sample(denoiser.predict, denoiser.noise_schedule, z, sampler, whole)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not clip or not final or found.abs().max() <= 0.4
    lag0 = PyramidSampler(steps=7, eta=eta, set_alpha_to_one=final, lag=0, **clip)
    assert torch.equal(lag0(denoiser.predict, denoiser.noise_schedule, z), found)


def test_a_causal_network_with_a_lag_of_all_steps_samples_token_by_token() -> None:
    torch.manual_seed(0)
    network = RecurrentPlanner((3, 4, 2), network_size=4, state=8).eval().requires_grad_(False)
    config = {"num_train_timesteps": 50, "beta_schedule": "linear", "prediction_type": "sample"}
    denoiser, sampler = Denoiser(network, DiffusersSchedule(config)), PyramidSampler(steps=4, lag=4)
    z = seeded_noise(range(2), (3, 4, 2), sampler, denoiser.noise_schedule)
    found = sampler(denoiser.predict, denoiser.noise_schedule, z)
    # The first token depends on itself alone, so DDIM of it with whatever follows gives the same.
    alone = sample(denoiser.predict, denoiser.noise_schedule, z, Sampler(steps=4))
    assert torch.allclose(found[:, 0], alone[:, 0], atol=1e-6)
    # The second one sees the first at the level of finished tokens, 0.
    schedule = denoiser.noise_schedule
    assert isinstance(schedule, DiffusersSchedule)
    abar, times = schedule.alphas_cumprod.tolist(), [int(level.timestep) for level, _ in sampler.pairs(schedule)]
    noisy = torch.stack([found[:, 0], z[:, 0, 1], z[:, 0, 2]], dim=1)
    for t, previous in zip(times, [*times[1:], None], strict=True):
        clean = denoiser(noisy, torch.tensor([[0, t, times[0]]] * 2))[:, 1]
        noise = (noisy[:, 1] - abar[t] ** 0.5 * clean) / (1 - abar[t]) ** 0.5
        after = 1.0 if previous is None else abar[previous]
        noisy = torch.stack([noisy[:, 0], after**0.5 * clean + (1 - after) ** 0.5 * noise, noisy[:, 2]], dim=1)
    assert torch.allclose(found[:, 1], noisy[:, 1], atol=1e-5)


def test_every_token_takes_every_step_once() -> None:
    matrix = pyramid(6, 4, lag=2)
    assert matrix.shape == (6 + 2 * 3 + 1, 4)
    assert (matrix.diff(dim=0).sum(0) == 6).all()
    assert (matrix[:, :-1] - matrix[:, 1:]).max() == 2


def test_samples_stay_differentiable_in_their_noise(denoiser: Denoiser) -> None:
    sampler = PyramidSampler(steps=3, eta=1.0, lag=1)
    z = seeded_noise(range(1), denoiser.sample_shape, sampler, denoiser.noise_schedule).double().requires_grad_(True)
    network = denoiser.double()
    found = torch.autograd.gradcheck(lambda z: sampler(network.predict, network.noise_schedule, z), z, fast_mode=True)
    assert found


def test_matrices_and_lags_that_are_none_are_refused(denoiser: Denoiser) -> None:
    z = torch.zeros(1, 1, 5, 4, 2)
    with pytest.raises(ValueError, match=r"a scheduling matrix \(M \+ 1, 5\) from all 0 to all 3"):
        token_sample(denoiser.predict, denoiser.noise_schedule, z, Sampler(steps=3), pyramid(4, 5))
    with pytest.raises(ValueError, match="moves of 0 or 1"):
        token_sample(denoiser.predict, denoiser.noise_schedule, z, Sampler(steps=4), pyramid(4, 5, lag=0)[::2])
    with pytest.raises(ValueError, match="lag of 0 or more"):
        PyramidSampler(lag=-1)
    with pytest.raises(ValueError, match="needs 3 slices"):
        token_sample(denoiser.predict, denoiser.noise_schedule, z, Sampler(steps=3, eta=1.0), pyramid(3, 5))


@pytest.mark.parametrize("schedule", [FlowMatching(3.0), VarianceExploding(), VariancePreserving([0.9, 0.5, 0.1])])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_full_sequence_is_the_plain_sampler_in_every_family(
    schedule: NoiseSchedule, eta: float, draw: Any, predictor: Any
) -> None:
    sampler = Sampler(3, eta, clip_sample=False)
    z = draw(2, 1 + sampler.injecting_steps(schedule), 5)
    alone = predictor(schedule)

    def by_token(noisy: Tensor, timesteps: Tensor) -> Prediction:
        flat = alone(noisy.reshape(-1, 1), timesteps.reshape(-1))
        return Prediction(*(part.reshape(noisy.shape) for part in flat))

    def whole(noisy: Tensor, timesteps: Tensor) -> Prediction:
        return by_token(noisy, timesteps[:, None].expand(noisy.shape))

    expected = sample(whole, schedule, z, sampler)
    found = token_sample(by_token, schedule, z, sampler, pyramid(3, 5, lag=0))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
