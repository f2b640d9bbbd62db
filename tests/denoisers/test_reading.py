"""A network that is read wrongly says so by its error on its own samples."""

import math
import warnings
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.denoisers import reading
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.reading import check_ends, check_reading, other_readings, own_error
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.flow_matching import FlowMatching
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving


@pytest.fixture(scope="module")
def digits() -> PretrainedDenoiser:
    return PretrainedDenoiser("mnist_denoiser")


class InUnits(nn.Module):
    """The zoo's network as one that expects its time in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        return self.network(noisy, time * 1000).sample  # type: ignore[no-any-return]


def test_the_right_reading_has_a_small_error_and_no_warning(digits: PretrainedDenoiser) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_reading(digits, seeds=range(2)) < 0.2


@pytest.mark.parametrize("name", ["maze2d_planner", "polymer_generator"])
def test_the_zoo_s_other_models_give_no_false_alarm(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_reading(PretrainedDenoiser(name), seeds=range(2))


def misread(digits: PretrainedDenoiser, how: str) -> Denoiser:
    network, schedule, codec = digits.network, digits.noise_schedule, digits.codec
    if how in ("epsilon", "sample"):
        schedule = VariancePreserving(schedule.alphas_cumprod, how)  # type: ignore[arg-type]
    elif how == "linear":
        schedule = DiffusersSchedule({"beta_schedule": "linear", "prediction_type": "v_prediction"})
    elif how == "time":
        network = InUnits(network)
    elif how == "range":
        codec = Normalizer(0.0, 1.0, 0.0, 1.0)
    return Denoiser(network, schedule, codec, digits.sample_shape)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("epsilon", "prediction_type v_prediction"),
        ("sample", "prediction_type v_prediction"),
        ("linear", "beta_schedule squaredcos_cap_v2"),
        ("time", r"time in \[0, 1\]"),
        ("range", r"data in \[-1, 1\]"),
    ],
)
def test_a_misreading_is_named_with_the_right_one(digits: PretrainedDenoiser, how: str, said: str) -> None:
    with pytest.warns(UserWarning, match=f"does not fit what its config says: .* but with .*{said}"):
        assert check_reading(misread(digits, how), seeds=range(2)) > 0.3


class OneGaussian(nn.Module):
    """The exact velocity of data N(0, 0.1^2) under a flow, times `sign`."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign, self.weight = sign, nn.Parameter(torch.zeros(1))

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        u = (time / 1000).to(noisy)[:, None]
        return self.sign * (u - (1 - u) * 0.01) / ((1 - u) ** 2 * 0.01 + u**2) * noisy


def test_a_flow_of_the_other_sign_is_named() -> None:
    assert check_reading(Denoiser(OneGaussian(1.0), FlowMatching(), Normalizer(), (64,))) < 0.1
    with pytest.warns(UserWarning, match="but with a network that returns x_0 - eps it is 0.0"):
        check_reading(Denoiser(OneGaussian(-1.0), FlowMatching(), Normalizer(), (64,)))


def transformer() -> Any:
    """One that takes something else between x_t and t."""
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "cross_attention_dim": 24}
    kind: Any = diffusers.PixArtTransformer2DModel
    return kind(sample_size=8, in_channels=1, out_channels=1, caption_channels=16, **size).eval()


@pytest.mark.parametrize("kind", ["unet", "transformer"])
@pytest.mark.parametrize("flow", [True, False])
def test_networks_of_diffusers_are_tried_in_every_reading(kind: str, flow: bool, unet: Any) -> None:
    torch.manual_seed(0)
    schedule = FlowMatching() if flow else VariancePreserving(torch.linspace(0.99, 0.01, 50))
    denoiser = Denoiser(unet() if kind == "unet" else transformer(), schedule, sample_shape=(1, 8, 8))
    told = None if kind == "unet" else {"encoder_hidden_states": torch.randn(2, 3, 16)}
    errors = {name: own_error(other, told, range(2)) for name, other in other_readings(denoiser)}
    time = {f"a network that expects its time in [0, {end}]" for end in ("1", "T")}
    own = {"a network that returns x_0 - eps"} if flow else {"FlowMatching as its schedule"}
    assert errors.keys() >= time | own
    assert all(math.isfinite(error) for error in errors.values())


def test_a_flow_of_diffusers_whose_time_is_scaled_wrongly_is_named() -> None:
    labels = {"class_labels": torch.arange(8)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_reading(PretrainedDenoiser("mnist_flow"), labels)
    stated = PretrainedDenoiser("mnist_flow", noise_schedule=FlowMatching(time_scale=0.001))
    with pytest.warns(UserWarning, match=r"but with a network that expects its time in \[0, T\]"):
        check_reading(stated, labels)


@pytest.mark.parametrize(("other", "warned"), [(0.6, False), (0.4, True)])
def test_only_a_reading_that_fits_clearly_better_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_denoiser: Any, other: float, warned: bool
) -> None:
    monkeypatch.setattr(reading, "own_error", lambda *_: 1.0)
    monkeypatch.setattr(reading, "_tried", lambda *_: other)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert reading.check_reading(tiny_denoiser()) == 1.0
    assert bool(seen) == warned


def test_what_is_not_finite_has_an_infinite_error() -> None:
    def broken(noisy: Tensor, time: Tensor) -> Tensor:
        return noisy * math.nan

    network: Any = nn.Module()
    network.forward = broken
    assert own_error(Denoiser(network, FlowMatching(), Normalizer(), (4,))) == math.inf


def test_the_check_leaves_random_numbers_and_modes_alone(digits: PretrainedDenoiser) -> None:
    digits.network.train()
    state = torch.get_rng_state()
    own_error(digits, seeds=[0])
    assert digits.network.training
    assert torch.equal(state, torch.get_rng_state())
    digits.network.eval()


def test_a_model_in_double_precision_is_looked_at_too(tiny_denoiser: Any) -> None:
    assert math.isfinite(check_reading(tiny_denoiser().double()))


class AtTheEnd(nn.Module):
    """NaN at one timestep alone."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place, self.weight = place, nn.Parameter(torch.zeros(1))

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        return noisy.masked_fill((time == self.place)[:, None], math.nan)


@pytest.mark.parametrize(("place", "name"), [(0, "first"), (49, "last")])
def test_an_end_of_the_schedule_that_is_not_finite_is_named(place: int, name: str) -> None:
    schedule = VariancePreserving(torch.linspace(0.99, 0.01, 50))
    check_ends(Denoiser(AtTheEnd(25), schedule, Normalizer(), (4,)))
    with pytest.raises(ValueError, match=f"output of AtTheEnd is not finite at the {name} timestep .*{place}"):
        check_ends(Denoiser(AtTheEnd(place), schedule, Normalizer(), (4,)))


def test_it_is_tried_at_load_where_that_is_asked_for() -> None:
    wrong = Normalizer(0.0, 1.0, 0.0, 1.0)
    with pytest.warns(UserWarning, match=r"but with data in \[-1, 1\] for the network"):
        PretrainedDenoiser("mnist_denoiser", codec=wrong, check=True)
