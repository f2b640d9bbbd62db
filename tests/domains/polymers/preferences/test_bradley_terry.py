"""Merits against choix, closed forms, and draws from known merits."""

from __future__ import annotations

import math

import pytest
import torch

from constrained_diffusion.domains.polymers.preferences.bradley_terry import components, fit_merits, log_likelihood


def table(count: int, rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return true log merits, pairs and outcomes drawn by them."""
    generator = torch.Generator().manual_seed(seed)
    merits = torch.randn(count, generator=generator, dtype=torch.float64)
    pairs = torch.stack([torch.randperm(count, generator=generator)[:2] for _ in range(rows)])
    chance = torch.sigmoid(merits[pairs[:, 0]] - merits[pairs[:, 1]])
    return merits - merits.mean(), pairs, (torch.rand(rows, generator=generator) < chance).double()


def test_two_items_have_the_odds_of_their_outcomes() -> None:
    pairs, outcomes = torch.tensor([[0, 1]] * 4), torch.tensor([1.0, 1.0, 1.0, 0.0])
    found = fit_merits(pairs, outcomes, 2, regularization=0)
    assert float(found.log_merits[0] - found.log_merits[1]) == pytest.approx(math.log(3))
    assert found.log_likelihood == pytest.approx(3 * math.log(3 / 4) + math.log(1 / 4))
    # The log odds of k of n have the error sqrt(n / (k (n - k))); each merit carries half of it.
    assert float(found.standard_errors[0]) == pytest.approx(math.sqrt(4 / 3) / 2)


def test_a_tie_is_half_a_win_for_either() -> None:
    pairs = torch.tensor([[0, 1], [0, 1], [1, 2], [1, 2]])
    ties = fit_merits(pairs, torch.tensor([0.5, 0.5, 1.0, 0.5]), 3)
    halves = fit_merits(pairs.repeat(2, 1), torch.tensor([1.0, 1, 1, 1, 0, 0, 1, 0]), 3, regularization=2e-3)
    assert torch.allclose(ties.log_merits, halves.log_merits)
    assert float(log_likelihood(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(0.5))) == pytest.approx(
        0.5 * math.log(1 / (1 + math.exp(-1))) + 0.5 * math.log(1 / (1 + math.exp(1)))
    )


def test_merits_are_choixs() -> None:
    choix = pytest.importorskip("choix", reason="choix is not installed")
    _, pairs, outcomes = table(12, 150)
    wins = [(int(a), int(b)) if y else (int(b), int(a)) for (a, b), y in zip(pairs, outcomes, strict=True)]
    theirs = torch.from_numpy(choix.opt_pairwise(12, wins, alpha=0.05, tol=1e-12))
    ours = fit_merits(pairs, outcomes, 12, regularization=0.1).log_merits  # choix writes alpha without the half
    assert torch.allclose(ours, theirs - theirs.mean(), atol=1e-5)


def test_true_merits_lie_within_the_standard_errors() -> None:
    merits, pairs, outcomes = table(40, 8000)
    found = fit_merits(pairs, outcomes, 40, regularization=0)
    deviations = (found.log_merits - merits) / found.standard_errors
    assert 0.7 < float(deviations.std()) < 1.3
    assert found.standard_errors.max() < 0.2


@pytest.mark.parametrize("regularization", [1e-3, 1.0, 5.0])
def test_regularised_errors_are_those_of_the_curvature(regularization: float) -> None:
    """By autograd's Hessian, inverted, of merits from which their mean is taken."""
    _, pairs, outcomes = table(6, 40)
    found = fit_merits(pairs, outcomes, 6, regularization=regularization)

    def loss(merits: torch.Tensor) -> torch.Tensor:
        chance = log_likelihood(merits[pairs[:, 0]], merits[pairs[:, 1]], outcomes.double()).sum()
        return regularization / 2 * merits.square().sum() - chance

    inverse = torch.linalg.inv(torch.autograd.functional.hessian(loss, found.log_merits))
    centre = torch.eye(6, dtype=torch.float64) - 1 / 6
    expected = (centre @ inverse @ centre).diagonal().sqrt()
    torch.testing.assert_close(found.standard_errors, expected, rtol=1e-6, atol=1e-9)


def test_unbounded_merits_are_refused_without_regularisation_and_bounded_with_it() -> None:
    pairs, outcomes = torch.tensor([[0, 1], [1, 2]]), torch.ones(2)
    with pytest.raises(ValueError, match="some items won, or lost, all comparisons with the rest, item 1 among them"):
        fit_merits(pairs, outcomes, 3, regularization=0)
    found = fit_merits(pairs, outcomes, 3).log_merits
    assert found[0] > found[1] > found[2]


def test_items_without_a_chain_of_comparisons_are_named() -> None:
    pairs = torch.tensor([[0, 1], [2, 3], [3, 4], [5, 4]])
    assert components(pairs, 6).tolist() == [0, 0, 2, 2, 2, 2]
    with pytest.raises(ValueError, match="2 groups share none: item 2 is never compared"):
        fit_merits(pairs, torch.ones(4), 6)


@pytest.mark.parametrize(
    ("pairs", "outcomes", "regularization", "message"),
    [
        ([[0, 1]], [1.0, 0.0], 0.0, r"got shapes \(1, 2\) and \(2,\)"),
        ([[0, 0]], [1.0], 0.0, r"two different items of 0 \.\. 1"),
        ([[0, 2]], [1.0], 0.0, r"two different items of 0 \.\. 1"),
        ([[0, 1]], [0.7], 0.0, "expected outcomes of 1"),
        ([[0, 1]], [1.0], -1.0, "regularization is 0 or more, got -1.0"),
    ],
)
def test_bad_tables_are_refused(pairs: list, outcomes: list, regularization: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_merits(torch.tensor(pairs), torch.tensor(outcomes), 2, regularization)
