from __future__ import annotations

import pytest

from constrained_diffusion.domains.polymers.split import preferences_and_judge, train_and_held_out


@pytest.mark.parametrize(("count", "share", "held"), [(100, 0.1, 10), (7, 0.5, 4), (6024, 0.1, 602), (3, 0.1, 0)])
def test_every_unit_is_on_one_side_in_rising_order(count: int, share: float, held: int) -> None:
    train, held_out = train_and_held_out(count, share, seed=0)
    assert len(held_out) == held
    assert sorted(train + held_out) == list(range(count))
    assert train == sorted(train)
    assert held_out == sorted(held_out)


def test_the_seed_decides() -> None:
    assert train_and_held_out(50, 0.3, 1) == train_and_held_out(50, 0.3, 1)
    assert train_and_held_out(50, 0.3, 1) != train_and_held_out(50, 0.3, 2)


def test_more_held_out_are_the_same_and_others() -> None:
    few, many = (set(train_and_held_out(50, share, 0)[1]) for share in (0.1, 0.4))
    assert few < many


@pytest.mark.parametrize("count", [1, 2, 9, 5422])
def test_preferences_and_judge_share_no_unit(count: int) -> None:
    train, _ = train_and_held_out(2 * count, 0.5, 0)
    preferences, judge = preferences_and_judge(train)
    assert sorted(preferences + judge) == train
    assert len(judge) == (len(train) + 2) // 4


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_bad_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"held_out is a share in \(0, 1\), got"):
        train_and_held_out(10, share, 0)
