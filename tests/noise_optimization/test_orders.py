"""Orders are permutations, and their moments are those of a plain loop over the written-out orders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from constrained_diffusion.noise_optimization import orders as module
from constrained_diffusion.noise_optimization.concentration import log_bound_mean
from constrained_diffusion.noise_optimization.orders import (
    Orders,
    block_length,
    check_size,
    draw_orders,
    moments,
    natural_moments,
)

N = 48
CASES = [(k, block) for k in (1, 2, 3, 4) for block in (1, 2, 4)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(z: Tensor, orders: Orders, k: int) -> tuple[Tensor, Tensor]:
    """Column means and second moments, order by order and row by row."""
    means, seconds = [], []
    for index in orders.indices(k):
        for v in z[:, index].view(len(z), -1, k):
            means.append(v.sum(0) / len(v))
            seconds.append(sum(torch.outer(row, row) for row in v) / len(v))
    q = len(orders.blocks)
    return (
        torch.stack(means).view(q, len(z), k).transpose(0, 1),
        torch.stack(seconds).view(q, len(z), k, k).transpose(0, 1),
    )


# --------------------------------------------------------------------------------------------------------------- orders


@pytest.mark.parametrize(("k", "block"), CASES)
def test_every_order_is_a_permutation(k: int, block: int) -> None:
    written = draw_orders(N, k, 7, (1, 2), block).indices(k)
    assert written.shape == (7, N)
    assert torch.equal(written.sort(1).values, torch.arange(N).expand(7, N))
    assert len({tuple(order) for order in written.tolist()}) == 7


@pytest.mark.parametrize("block", [1, 4])
def test_the_key_alone_decides_the_orders(block: int) -> None:
    first, again, other = (draw_orders(N, 2, 5, key, block).indices(2) for key in ((3, 4), (3, 4), (3, 5)))
    assert torch.equal(first, again)
    assert (first != other).any(1).all()


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw_orders(N, 2, 3, (0,), 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_every_number_shares_a_row_with_every_other_as_often(block: int) -> None:
    n, draws = 8, 3000
    rows = torch.cat([draw_orders(n, 2, 1, (key,), block).indices(2) for key in range(draws)]).view(-1, 2)
    together = torch.zeros(n, n).index_put_(tuple(rows.T), torch.tensor(1.0), accumulate=True) / draws
    expected = 1 / (n * (n - 1)) * n / 2  # each ordered pair, of which n / 2 are rows
    assert not together.diagonal().any()
    assert (together[~torch.eye(n, dtype=torch.bool)] - expected).abs().max() < 5 * (expected / draws) ** 0.5


@pytest.mark.parametrize(
    ("size", "k", "expected"),
    [
        (835_584, 2, 32),
        (1_000_000, 4, 16),  # 1,000,000 = 2^6 * 5^6: 32 * 4 does not divide it
        (98_304, 3, 8),  # 16 would leave 6,144 blocks
        (16_384, 2, 2),  # exactly 8,192 blocks
        (16_380, 2, 1),  # 8,190 of them
        (835_585, 1, 1),  # odd
        (2, 2, 1),
    ],
)
def test_the_longest_blocks_that_leave_enough_of_them(size: int, k: int, expected: int) -> None:
    assert block_length(size, k) == expected
    if size < 100_000:
        assert draw_orders(size, k, 1, (0,)).blocks.shape[1] == size // expected


@pytest.mark.parametrize("k", [0, 5, 100])
def test_k_must_divide_n(k: int) -> None:
    message = (
        rf"k must divide the number of noise variables of a sample, {N}, but got k={k}; choose a divisor, such as 1.$"
    )
    with pytest.raises(ValueError, match=message):
        check_size(N, k)
    with pytest.raises(ValueError, match=message):
        draw_orders(N, k, 1, (0,))


def test_blocks_must_fill_the_columns() -> None:
    with pytest.raises(ValueError, match="blocks of 16 numbers do not fill 2 columns of 48 numbers"):
        draw_orders(N, 2, 1, (0,), block=16)


# -------------------------------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize(("k", "block"), CASES)
def test_moments_and_their_gradient_are_those_of_a_plain_loop(
    k: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, orders = draw(2, N).requires_grad_(), draw_orders(N, k, 5, (k, block), block)
    weights = draw(2, 5, k, seed=1), draw(2, 5, k, k, seed=2)
    for weight in weights:
        weight[:, 3] = 0  # an order inside the bounds sends no gradient
    expected = plain(z, orders, k)
    (gradient,) = torch.autograd.grad(sum((w * e).sum() for w, e in zip(weights, expected, strict=True)), z)
    for chunk in (module.CHUNK, 4 * N):  # all orders at once, two at a time
        monkeypatch.setattr(module, "CHUNK", chunk)
        found = moments(z, orders, k)
        torch.testing.assert_close(tuple(found), expected, rtol=1e-12, atol=1e-12)
        (ours,) = torch.autograd.grad(sum((w * f).sum() for w, f in zip(weights, found, strict=True)), z)
        torch.testing.assert_close(ours, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("k", "block"), [(1, 2), (2, 1), (2, 4), (3, 2)])
def test_gradcheck(k: int, block: int) -> None:
    orders = draw_orders(24, k, 3, (0,), block)
    assert torch.autograd.gradcheck(lambda z: tuple(moments(z, orders, k)), draw(2, 24).requires_grad_())
    assert torch.autograd.gradcheck(lambda z: tuple(natural_moments(z, k)), draw(2, 24).requires_grad_())


def test_the_natural_order_is_the_one_in_which_z_lies() -> None:
    found = natural_moments(torch.tensor([[1.0, 2.0, 3.0, 6.0]]), 2)
    assert found.mean.tolist() == [[[2.0, 4.0]]]
    assert found.second.tolist() == [[[[5.0, 10.0], [10.0, 20.0]]]]


def test_no_orders_have_no_moments() -> None:
    z, orders = draw(2, N).requires_grad_(), draw_orders(N, 2, 0, (0,))
    found = moments(z, orders, 2)
    assert found.mean.shape == (2, 0, 2)
    assert found.second.shape == (2, 0, 2, 2)
    assert not torch.autograd.grad(found.second.sum() + found.mean.sum(), z)[0].any()


def test_blocks_leave_the_estimate_over_orders_as_it_is() -> None:
    """Its mean and its variance over draws of 100 orders, for numbers that are alike within a block."""
    n, k, draws = 4096, 2, 60
    z = draw(1, n // 2).float().repeat_interleave(2, 1) + 0.04
    estimates = {
        block: torch.stack(
            [log_bound_mean(moments(z, draw_orders(n, k, 100, (block, i), block), k).mean, n // k).mean()
             for i in range(draws)]
        )
        for block in (1, 2)
    }  # fmt: skip
    full, blocks = estimates[1], estimates[2]
    assert full.mean() < -0.5  # the bound is at work
    assert abs(full.mean() - blocks.mean()) < 4 * ((full.var() + blocks.var()) / draws).sqrt()
    assert blocks.var() < 1.8 * full.var()  # with 60 draws the ratio has a standard error of 0.26
