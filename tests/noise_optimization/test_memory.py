"""The bytes of a known network, the arithmetic of the budget, and which calls are computed twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.diffusion.prediction import Prediction
from constrained_diffusion.noise_optimization.memory import check_budget, checkpoint_calls, kept_calls, saved_bytes

ROWS, WIDTH = 4, 1000


def predictor(network: nn.Module) -> Any:
    network.requires_grad_(False)

    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        output = network(noisy)
        return Prediction(output, output, output)

    return predict


def layers(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, WIDTH), activation, nn.Linear(WIDTH, 10))


def measured(network: nn.Module, noisy: Tensor) -> int:
    return saved_bytes(predictor(network), noisy, torch.zeros(len(noisy), dtype=torch.long))


# ---------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("network", "numbers"),
    [
        (layers(nn.Tanh()), WIDTH),  # tanh keeps its result, frozen linear layers nothing of their own
        (nn.Sequential(*layers(nn.Tanh()), *layers(nn.Tanh())), 2 * WIDTH),
        (nn.Sequential(layers(nn.Tanh()), nn.Identity()), WIDTH),
        (nn.Linear(10, 10), 0),
        (nn.SiLU(), 0),  # keeps its input, which is there in any case
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_network_keeps_is_its_activations_and_not_its_weights(
    network: nn.Module, numbers: int, dtype: torch.dtype
) -> None:
    noisy = torch.randn(ROWS, 10, dtype=dtype)
    assert measured(network.to(dtype), noisy) == ROWS * numbers * dtype.itemsize


def test_a_storage_that_two_operations_keep_counts_once() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.tanh()
            return y * y.flip(-1) + y.exp()

    # tanh's result, which the product keeps too; its flipped copy; exp's result
    assert measured(Square(), torch.randn(ROWS, WIDTH)) == 3 * ROWS * WIDTH * 4


def test_measuring_leaves_no_gradient_behind_and_works_without_grad() -> None:
    network, noisy = layers(nn.Tanh()), torch.randn(ROWS, 10)
    with torch.no_grad():
        assert measured(network, noisy) == ROWS * WIDTH * 4
    assert not noisy.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


# --------------------------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize(
    ("budget", "kept"), [("unlimited", 7), ("minimal", 0), (100, 1), (199, 1), (200, 2), (699, 6), (10_000, 7)]
)
def test_as_many_calls_are_kept_as_fit(budget: Any, kept: int) -> None:
    assert kept_calls(budget, 7, lambda: 100) == kept


def test_bytes_are_measured_only_where_they_count() -> None:
    def never() -> int:
        raise AssertionError

    assert kept_calls("unlimited", 3, never) == 3
    assert kept_calls("minimal", 3, never) == 0
    assert kept_calls(10, 3, lambda: 0) == 3


def test_a_budget_below_one_call_is_refused() -> None:
    with pytest.raises(ValueError, match=r'is 99 bytes, .* single denoiser call are 100; give at least .*"minimal"'):
        kept_calls(99, 7, lambda: 100)


@pytest.mark.parametrize("budget", ["unlimited", "minimal", 1, 10**12])
def test_budgets_are_returned(budget: Any) -> None:
    assert check_budget(budget) == budget


@pytest.mark.parametrize("budget", ["much", 0, -5, 1.5, None])
def test_what_is_no_budget_is_refused(budget: Any) -> None:
    with pytest.raises(ValueError, match=rf'a number of bytes, "unlimited" or "minimal", got {budget!r}'):
        check_budget(budget)


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("keep", [0, 1, 3, 5])
def test_the_last_calls_are_kept_and_the_others_made_twice(keep: int) -> None:
    made: list[int] = []

    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        made.append(int(timesteps[0]))
        output = (noisy * 1.3).sin()
        return Prediction(output, output, output)

    wrapped = checkpoint_calls(predict, 5, keep)
    x = start = torch.tensor([[0.3, -0.8]], requires_grad=True)
    for call in range(5):
        x = wrapped(x, torch.tensor([call])).clean
    assert made == [0, 1, 2, 3, 4]
    (gradient,) = torch.autograd.grad(x.sum(), start)
    assert made[5:] == list(reversed(range(5 - keep)))  # backward, one at a time
    plain = again = start
    for _ in range(5):
        plain = (plain * 1.3).sin()
    torch.testing.assert_close(gradient, torch.autograd.grad(plain.sum(), again)[0])


def test_without_gradients_nothing_is_checkpointed() -> None:
    def predict(noisy: Tensor, timesteps: Tensor) -> Prediction:
        return Prediction(noisy, noisy, noisy.sin())

    clean = checkpoint_calls(predict, 1, 0)(torch.ones(1, 2), torch.tensor([0])).clean
    assert not clean.requires_grad
