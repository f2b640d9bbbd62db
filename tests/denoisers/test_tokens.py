from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import one_hot

from constrained_diffusion.denoisers.tokens import TokenTransformer

SMALL = {"width": 16, "depth": 2, "heads": 2, "feedforward": 32}


@pytest.fixture
def network() -> TokenTransformer:
    torch.manual_seed(0)
    return TokenTransformer((4, 6), **SMALL).eval()


def test_it_predicts_shares_of_tokens(network: TokenTransformer) -> None:
    sample, timestep = torch.randn(3, 4, 6), torch.tensor([0, 500, 999])
    shares = (network(sample, timestep) + 1) / 2
    assert shares.shape == sample.shape
    torch.testing.assert_close(shares.sum(1), torch.ones(3, 6))
    assert shares.min() >= 0


def test_where_places_say_nothing_of_each_other_it_is_bayes_rule(network: TokenTransformer) -> None:
    """With F = log prior: the posterior by enumeration of all sequences, with scipy's normal density."""
    from scipy.stats import norm

    prior = torch.tensor([0.1, 0.2, 0.3, 0.4])
    torch.nn.init.zeros_(network.out.weight)
    with torch.no_grad():
        network.out.bias.copy_(prior.log())
    sample, timestep = torch.randn(1, 4, 6), torch.tensor([600])
    abar = network.alphas_cumprod[600].item()
    expected = torch.zeros(4, 6)
    for sequence in itertools.product(range(4), repeat=6):
        clean = 2 * one_hot(torch.tensor(sequence), 4).T - 1
        log_density = norm.logpdf(sample[0].numpy(), abar**0.5 * clean.numpy(), (1 - abar) ** 0.5).sum()
        weight = torch.tensor(log_density + 100).exp() * prior[list(sequence)].prod()
        expected += weight * one_hot(torch.tensor(sequence), 4).T
    expected /= expected.sum(0)
    with torch.no_grad():
        found = (network(sample, timestep)[0] + 1) / 2
    torch.testing.assert_close(found, expected.to(found), rtol=1e-3, atol=1e-4)


def test_without_noise_it_returns_what_it_was_given(network: TokenTransformer) -> None:
    clean = 2 * one_hot(torch.randint(4, (2, 6)), 4).mT.float() - 1
    torch.testing.assert_close(network(clean, torch.zeros(2).long()), clean, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_at_every_level(network: TokenTransformer, kind: torch.dtype) -> None:
    """Without noise 1 - abar is less than half precision tells from 0."""
    sample, timestep = torch.randn(5, 4, 6).clamp(-1.2, 1.2), torch.tensor([0, 5, 100, 500, 999])
    expected = network(sample, timestep)
    half = network.to(kind)
    assert half.alphas_cumprod.dtype == torch.float32
    found = half(sample.to(kind), timestep)
    assert found.dtype == kind
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1)


def test_every_place_sees_every_other(network: TokenTransformer) -> None:
    sample = torch.randn(1, 4, 6, requires_grad=True)
    network(sample, torch.tensor([500]))[0, 0, 0].backward()
    assert sample.grad is not None
    assert (sample.grad[0].abs().sum(0) > 0).all()


def test_its_config_makes_it_again(network: TokenTransformer, tmp_path) -> None:
    network.save_pretrained(tmp_path)
    again = TokenTransformer.from_pretrained(tmp_path)
    sample, timestep = torch.randn(2, 4, 6), torch.tensor([3, 700])
    assert torch.equal(again(sample, timestep), network(sample, timestep))
