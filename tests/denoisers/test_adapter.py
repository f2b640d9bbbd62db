"""One adapter for every kind of network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.diffusion.normalizer import Normalizer
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.runtime.conditions import Prompts


def schedule(kind: Any = "epsilon") -> VariancePreserving:
    return VariancePreserving(torch.cos(torch.linspace(0.05, 1.5, 50)) ** 2, kind)


class Tokens(nn.Module):
    """Adds each token's timestep, and the condition if there is one; answers as `wrap` says."""

    def __init__(self, wrap: Any = lambda x: x) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor | None = None) -> Any:
        shift = timesteps.reshape(timesteps.shape + (1,) * (noisy.ndim - timesteps.ndim))
        return self.wrap(noisy + shift + (0 if condition is None else condition))


def test_a_plain_network_with_one_or_many_noise_levels() -> None:
    denoiser = Denoiser(Tokens(), schedule(), Normalizer(), sample_shape=(3, 2))
    noisy = torch.zeros(2, 3, 2)
    assert denoiser(noisy, torch.tensor([4, 5]))[:, 0, 0].tolist() == [4, 5]
    levels = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert denoiser(noisy, levels)[..., 0].tolist() == levels.tolist()
    told = {"condition": torch.tensor([10.0, 20.0])[:, None, None]}
    assert denoiser(noisy, torch.tensor([4, 5]), told)[:, 0, 0].tolist() == [14, 25]
    prediction = denoiser.predict(noisy, levels)
    assert prediction.clean.shape == noisy.shape


class Answer(NamedTuple):
    extra: Tensor
    sample: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: SimpleNamespace(sample=x),
        lambda x: {"sample": x},
        lambda x: (x,),
        lambda x: (x, 2 * x),
        lambda x: Answer(2 * x, x),
    ],
)
def test_an_answer_may_hold_a_sample(wrap: Any) -> None:
    wrapped = Denoiser(Tokens(wrap), schedule(), sample_shape=(2,))
    noisy, timesteps = torch.randn(3, 2), torch.tensor([0, 1, 2])
    assert torch.equal(wrapped(noisy, timesteps), Denoiser(Tokens(), schedule(), sample_shape=(2,))(noisy, timesteps))


def test_a_half_precision_answer_takes_the_dtype_of_the_input() -> None:
    denoiser = Denoiser(Tokens(lambda x: x.bfloat16()), schedule(), sample_shape=(2,))
    assert denoiser(torch.zeros(1, 2), torch.tensor([0])).dtype == torch.float32


def test_a_unet_of_diffusers(unet: Any) -> None:
    network = unet()
    denoiser = Denoiser(network, schedule())
    noisy, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([0, 49])
    assert denoiser.sample_shape == (1, 8, 8)
    assert torch.equal(denoiser(noisy, timesteps), network(noisy, timesteps).sample)


def test_class_labels_reach_a_class_conditional_unet(unet: Any) -> None:
    network = unet(num_class_embeds=5)
    denoiser = Denoiser(network, schedule())
    noisy, timesteps, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 49]), torch.tensor([1, 4])
    given = denoiser(noisy, timesteps, {"class_labels": labels})
    assert torch.equal(given, network(noisy, timesteps, class_labels=labels).sample)
    assert not torch.equal(given, denoiser(noisy, timesteps, {"class_labels": torch.tensor([1, 3])}))


def test_hidden_states_reach_a_conditional_unet() -> None:
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        norm_num_groups=4,
        attention_head_dim=4,
    ).eval()
    denoiser = Denoiser(network, schedule())
    noisy, timesteps, states = torch.randn(2, 2, 8, 8), torch.tensor([0, 49]), torch.randn(2, 3, 6)
    assert denoiser.sample_shape == (2, 8, 8)
    given = denoiser(noisy, timesteps, {"encoder_hidden_states": states})
    assert torch.equal(given, network(noisy, timesteps, encoder_hidden_states=states).sample)
    assert not torch.equal(given, denoiser(noisy, timesteps, {"encoder_hidden_states": 2 * states}))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_network_that_knows_the_answer_is_read_right(kind: Any) -> None:
    s, generator = schedule(kind), torch.Generator().manual_seed(0)
    clean, noise = torch.rand(6, 1, 4, 4, generator=generator) * 2 - 1, torch.randn(6, 1, 4, 4, generator=generator)
    timesteps = torch.tensor([0, 1, 10, 20, 30, 45])
    target = s.target(clean, noise, timesteps)
    denoiser = Denoiser(Tokens(lambda _: target), s, sample_shape=(1, 4, 4))
    prediction = denoiser.predict(s.add_noise(clean, noise, timesteps), timesteps)
    assert torch.equal(prediction.output, target)
    torch.testing.assert_close(prediction.clean, clean, rtol=0, atol=1e-4)
    torch.testing.assert_close(prediction.noise, noise, rtol=0, atol=1e-4)


def test_predicted_clean_samples_lie_in_the_range_and_carry_gradients() -> None:
    denoiser = Denoiser(Tokens(), schedule(), sample_shape=(4,))
    noisy = (5 * torch.randn(8, 4)).requires_grad_()
    clean = denoiser.predict(noisy, torch.full((8,), 45)).clean
    assert clean.abs().max() <= 1
    (gradient,) = torch.autograd.grad(clean.sum(), noisy)
    assert (gradient != 0).all()


def test_another_network_of_the_kind_answers_in_its_place(unet: Any) -> None:
    denoiser, other = Denoiser(unet(0), schedule()), unet(1)
    noisy, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([0, 49])
    assert torch.equal(
        denoiser.predict(noisy, timesteps, network=other).output, Denoiser(other, schedule())(noisy, timesteps)
    )


def test_the_schedule_and_units_travel_in_the_state(unet: Any) -> None:
    keys = Denoiser(unet(), schedule()).state_dict().keys()
    assert {"noise_schedule.alphas_cumprod", "codec.mean", "codec.std"} <= keys


def test_data_of_another_shape_are_refused(unet: Any) -> None:
    denoiser = Denoiser(unet(), schedule())
    denoiser.check_data((1, 8, 8))
    with pytest.raises(ValueError, match=r"expects samples of shape \(1, 8, 8\) .* the data has \(3, 8, 8\); resize"):
        denoiser.check_data((3, 8, 8))


def test_oblong_samples_are_read_from_the_config(unet: Any) -> None:
    assert Denoiser(unet(sample_size=(8, 16)), schedule()).sample_shape == (1, 8, 16)


def test_a_shape_must_come_from_somewhere() -> None:
    with pytest.raises(ValueError, match=r"sample_shape must be given for a Tokens: .* \(1, 28, 28\)"):
        Denoiser(Tokens(), schedule())


class Wrong(nn.Module):
    """Returns what it was told to."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned, self.norm = returned, nn.BatchNorm2d(3)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Any:
        return self.returned(self.norm(noisy))


@pytest.mark.parametrize(
    ("returned", "error", "told"),
    [
        (lambda x: x[:, :1], ValueError, r"shape of its input, \(2, 3, 4, 4\), but returned \(2, 1, 4, 4\)"),
        (lambda x: x[:1], ValueError, r"but returned \(1, 3, 4, 4\)"),
        (lambda x: (), TypeError, "but returned a tuple; wrap it in a module"),
        (lambda x: {"output": x}, TypeError, "but returned a dict"),
        (lambda x: SimpleNamespace(output=x), TypeError, "but returned a SimpleNamespace"),
        (lambda x: x > 0, TypeError, "but returned a tensor of torch.bool"),
    ],
)
def test_what_would_be_broadcast_or_is_no_tensor_is_refused(returned: Any, error: Any, told: str) -> None:
    denoiser = Denoiser(Wrong(returned), VariancePreserving(torch.linspace(0.99, 0.1, 10)), sample_shape=(3, 4, 4))
    for call in (
        lambda: denoiser.check_data((3, 4, 4)),
        lambda: denoiser.predict(torch.rand(2, 3, 4, 4), torch.tensor([1, 2])),
    ):
        with pytest.raises(error, match=f"^Wrong must return .*{told}"):
            call()


def test_a_trial_of_the_network_leaves_no_trace() -> None:
    denoiser = Denoiser(
        Wrong(lambda x: x + torch.rand(1)), VariancePreserving(torch.linspace(0.99, 0.1, 10)), sample_shape=(3, 4, 4)
    )
    before, random = {key: value.clone() for key, value in denoiser.state_dict().items()}, torch.get_rng_state()
    denoiser.check_data((3, 4, 4))
    assert torch.equal(torch.get_rng_state(), random)
    assert denoiser.network.norm.training
    assert all(torch.equal(value, before[key]) for key, value in denoiser.state_dict().items())


def test_the_first_half_of_a_network_that_learnt_its_variance_is_the_answer(unet: Any) -> None:
    network = unet(out_channels=2)
    noisy, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([0, 49])
    assert torch.equal(Denoiser(network, schedule())(noisy, timesteps), network(noisy, timesteps).sample[:, :1])


def test_twice_the_channels_are_refused_where_no_variance_is_learnt() -> None:
    denoiser = Denoiser(Tokens(lambda x: torch.cat([x, x], 1)), schedule(), sample_shape=(1, 4, 4))
    with pytest.raises(ValueError, match=r"must return the shape of its input, \(2, 1, 4, 4\)"):
        denoiser(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))


class Branches(nn.Module):
    """Adds what it is told, and notes how many rows it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, noisy: Tensor, timesteps: Tensor, label: Tensor, more: dict[str, Tensor]) -> Tensor:
        self.rows.append(len(noisy))
        return noisy + label[:, None] + more["shift"]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_leads_away_from_the_null_condition_in_one_call(scale: float) -> None:
    network, null = Branches(), {"label": 5.0, "more.shift": [1.0, 2.0]}
    denoiser = Denoiser(network, schedule(), Normalizer(), (2,), scale, null)
    noisy, timesteps = torch.randn(3, 2), torch.tensor([0, 10, 49])
    told = {"label": torch.tensor([1.0, 2.0, 3.0]), "more.shift": torch.tensor([[0.0, 4.0]] * 3)}
    empty = noisy + 5 + torch.tensor([1.0, 2.0])
    full = noisy + torch.tensor([[1.0], [2.0], [3.0]]) + torch.tensor([0.0, 4.0])
    prediction = denoiser.predictor(told)(noisy, timesteps)
    torch.testing.assert_close(prediction.output, empty + scale * (full - empty))
    assert network.rows == [3 if scale == 1 else 6]
    assert torch.equal(denoiser.predict(noisy, timesteps, told).output, full)  # a training step is not guided


@pytest.mark.parametrize(
    ("scale", "limit"), [(-1.0, "at least 0"), (float("nan"), "at least 0"), (float("inf"), "finite")]
)
def test_a_scale_out_of_range_is_refused(scale: float, limit: str) -> None:
    with pytest.raises(ValueError, match=f"guidance_scale must be {limit}, got {scale}"):
        Denoiser(Branches(), schedule(), Normalizer(), (2,), scale, {"label": 0.0})


def test_a_network_that_wants_a_condition_is_tried_with_it() -> None:
    class Conditional(nn.Module):
        def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
            return noisy + condition

    denoiser = Denoiser(Conditional(), VariancePreserving(torch.linspace(0.99, 0.1, 10)), sample_shape=(2,))
    denoiser.check_data((2,), {"condition": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="Conditional needs condition, which nobody gives"):
        denoiser.check_data((2,))
    with pytest.raises(ValueError, match=r"must return the shape of its input, \(2, 2\), but returned \(2, 2, 2\)"):
        denoiser.check_data((2,), {"condition": torch.ones(2, 2, 1)})
    with pytest.raises(ValueError, match="gives the condition more, which Conditional does not take: .* of condition"):
        denoiser.check_data((2,), {"condition": torch.ones(2, 2), "more": torch.ones(2)})


def test_a_unet_without_classes_knows_no_labels(unet: Any) -> None:
    labels = {"class_labels": torch.tensor([0, 1])}
    with pytest.raises(
        ValueError, match="gives the condition class_labels, which UNet2DModel does not take: expected no"
    ):
        Denoiser(unet(), schedule()).check_data((1, 8, 8), labels)
    for classes in ({"num_class_embeds": 3}, {"class_embed_type": "timestep"}):
        denoiser = Denoiser(unet(**classes), schedule())
        denoiser.check_data((1, 8, 8), labels)
        with pytest.raises(
            ValueError, match="needs class_labels, which nobody gives: .* set its `conditions` to Labels"
        ):
            denoiser.check_data((1, 8, 8))


def test_a_network_of_labels_is_given_no_prompts(unet: Any) -> None:
    denoiser = Denoiser(unet(num_class_embeds=3), schedule())
    with pytest.raises(
        TypeError, match="UNet2DModel takes no prompts but class_labels: .* set .*`conditions` to Labels"
    ):
        Prompts(["a duck"]).of([0], denoiser)
    with pytest.raises(TypeError, match="Denoiser takes no prompts: expected a text-to-image pipeline"):
        Prompts(["a duck"]).of([0], Denoiser(unet(), schedule()))
