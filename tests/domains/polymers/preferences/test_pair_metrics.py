"""Accuracy and calibration of merits on pairs counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from constrained_diffusion.domains.polymers.preferences.pair_metrics import PairAccuracy, PairCalibrationError, decided

MERITS = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 1.5], [0.5, 0.4], [9.0, 0.0]])
OUTCOMES = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5])
TIES = torch.full((5,), 0.5)


def random_pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=generator), torch.randint(3, (count,), generator=generator) / 2


def test_pairs_that_are_no_ties_and_their_probabilities() -> None:
    chance, preferred = decided(MERITS, OUTCOMES)
    assert preferred.tolist() == [1, 0, 0, 1]
    expected = [1 / (1 + np.exp(-margin)) for margin in (1.0, -3.0, 0.5, 0.1)]
    assert chance.tolist() == pytest.approx(expected, abs=1e-6)


def test_accuracy_counted_by_hand() -> None:
    metric = PairAccuracy()
    metric.update(MERITS, OUTCOMES)
    assert float(metric.compute()) == 3 / 4
    metric.update(MERITS[:2].flip(1), OUTCOMES[:2])
    assert float(metric.compute()) == 3 / 6


def test_calibration_is_the_gap_in_each_bin() -> None:
    merits, outcomes = random_pairs(400)
    chance, preferred = [], []
    for (first, second), outcome in zip(merits.tolist(), outcomes.tolist(), strict=True):
        if outcome != 0.5:
            chance.append(1 / (1 + np.exp(second - first)))
            preferred.append(outcome)
    bins = np.floor(15 * np.array(chance))
    gaps = [abs(sum(np.array(chance)[bins == one] - np.array(preferred)[bins == one])) for one in range(15)]
    metric = PairCalibrationError()
    for rows in torch.arange(400).split(90):
        metric.update(merits[rows], outcomes[rows])
    assert float(metric.compute()) == pytest.approx(sum(gaps) / len(chance), abs=1e-5)


def test_outcomes_drawn_by_the_merits_are_calibrated() -> None:
    merits, _ = random_pairs(20_000)
    chance = torch.sigmoid(merits[:, 0] - merits[:, 1])
    outcomes = (torch.rand(20_000, generator=torch.Generator().manual_seed(1)) < chance).float()
    honest, sure = PairCalibrationError(), PairCalibrationError()
    honest.update(merits, outcomes)
    sure.update(5 * merits, outcomes)
    assert float(honest.compute()) < 0.02 < 0.1 < float(sure.compute())


@pytest.mark.parametrize("kind", [PairAccuracy, PairCalibrationError])
def test_ties_change_nothing(kind: type[PairAccuracy] | type[PairCalibrationError]) -> None:
    with_ties, without = kind(), kind()
    kept = OUTCOMES != 0.5
    without.update(MERITS[kept], OUTCOMES[kept])
    with_ties.update(MERITS, TIES)  # a whole batch of them
    with_ties.update(MERITS, OUTCOMES)
    torch.testing.assert_close(with_ties.compute(), without.compute())


@pytest.mark.parametrize("kind", [PairAccuracy, PairCalibrationError])
def test_swapping_the_two_changes_nothing(kind: type[PairAccuracy] | type[PairCalibrationError]) -> None:
    merits, outcomes = random_pairs(300)
    one, other = kind(), kind()
    one.update(merits, outcomes)
    other.update(merits.flip(1), 1 - outcomes)
    torch.testing.assert_close(one.compute(), other.compute(), atol=1e-5, rtol=0)


def test_of_ties_alone_there_is_no_calibration() -> None:
    metric = PairCalibrationError()
    metric.update(MERITS, TIES)
    assert bool(metric.compute().isnan())
    metric.reset()
    metric.update(MERITS, OUTCOMES)
    assert not bool(metric.compute().isnan())
