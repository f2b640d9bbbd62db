"""Noise on token sequences: keyed, of shares, and as sure as it is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from constrained_diffusion.domains.images.augment import KeyedChain
from constrained_diffusion.domains.polymers.augment_tokens import KeyedTokenNoise

KEYS = [(3, 0, row) for row in range(8)]


def tokens(rows: int = 8, size: int = 5, length: int = 12) -> Tensor:
    numbers = torch.randint(size, (rows, 2, length), generator=torch.Generator().manual_seed(0))
    return one_hot(numbers, size).mT.float()


def test_a_row_depends_on_its_own_key_alone() -> None:
    augment = KeyedTokenNoise(share=1.0, most=0.9)
    changed = augment(tokens(), KEYS)
    assert torch.equal(augment(tokens()[2:4], KEYS[2:4]), changed[2:4])
    assert torch.equal(augment(tokens().flip(0), KEYS[::-1]).flip(0), changed)
    other = augment(tokens(), [(4, *key[1:]) for key in KEYS])
    assert float((other - changed).abs().amax((2, 3)).median()) > 0.1
    assert torch.equal(KeyedChain([augment])(tokens(), KEYS), changed)


def test_the_two_of_a_pair_are_noised_apart() -> None:
    clean = tokens()[:, :1].expand(-1, 2, -1, -1)
    changed = KeyedTokenNoise(share=1.0, most=0.9)(clean, KEYS)
    assert float((changed[:, 0] - changed[:, 1]).abs().amax((1, 2)).median()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shares_of_tokens_come_out(dtype: torch.dtype) -> None:
    clean = tokens().to(dtype)
    before = clean.clone()
    changed = KeyedTokenNoise(share=1.0, most=0.9)(clean, KEYS)
    assert (changed.shape, changed.dtype) == (clean.shape, dtype)
    torch.testing.assert_close(changed.sum(2), torch.ones(8, 2, 12, dtype=dtype))
    assert float(changed.min()) >= 0
    assert torch.equal(clean, before)


def test_a_share_of_the_sequences_is_noised() -> None:
    clean, keys = tokens(600), [(0, row) for row in range(600)]
    assert torch.equal(KeyedTokenNoise(share=0.0)(clean, keys), clean)
    noised = (KeyedTokenNoise(share=0.3, most=0.9)(clean, keys) != clean).flatten(2).any(2)
    assert 0.24 < float(noised.double().mean()) < 0.34  # of some the level is so low that nothing shows
    both = noised.all(1).double().mean()
    assert float(both) == pytest.approx(0.3**2, abs=0.03)  # chosen one by one


def test_a_low_level_leaves_nearly_the_tokens() -> None:
    clean = tokens(100)
    keys = [(1, row) for row in range(100)]
    assert float((KeyedTokenNoise(share=1.0, most=0.05)(clean, keys) - clean).abs().max()) < 1e-3
    high = KeyedTokenNoise(share=1.0, most=0.95)(clean, keys)
    assert float((high - clean).abs().amax((1, 2, 3)).median()) > 0.5


@pytest.mark.parametrize("most", [0.5, 0.95])
def test_shares_are_as_sure_as_they_are_right(most: float) -> None:
    """Bayes' rule: among places of which a token has the share p, it was there in p of them."""
    clean = tokens(2000)
    shares = KeyedTokenNoise(share=1.0, most=most)(clean, [(2, row) for row in range(2000)])
    assert float((shares * (1 - shares)).mean()) > 0.01  # not all of them sure
    bins = (10 * shares).long().clamp(max=9).flatten()
    for one in range(10):
        here = bins == one
        truth, told = clean.flatten()[here].double(), shares.flatten()[here].double()
        error = (told * (1 - told)).mean().div(len(told)).sqrt()
        assert abs(float(truth.mean() - told.mean())) < 5 * float(error) + 1e-4


@pytest.mark.parametrize(("share", "most"), [(-0.1, 0.5), (1.1, 0.5), (0.5, 1.0), (0.5, -0.1)])
def test_settings_out_of_range(share: float, most: float) -> None:
    with pytest.raises(ValueError, match=rf"share in \[0, 1\] and most in \[0, 1\), got {share} and {most}"):
        KeyedTokenNoise(share, most)
