"""Simulated preferences: how often, by the binomial distribution, and from the command line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy import stats

from constrained_diffusion.domains.polymers.preferences.pairs import Preferences, read_preferences
from constrained_diffusion.domains.polymers.preferences.simulated import main, simulate_preferences

UNITS = ["[Cu]CO[Au]", "[Cu]CCO[Au]", "[Cu]CCCO[Au]", "[Cu]CCCCO[Au]"]


def wins(told: Preferences, item: int, other: int) -> tuple[int, int]:
    """Return how often `item` was preferred to `other`, and how often they met."""
    outcomes = [
        outcome if first == item else 1 - outcome
        for (first, second), outcome in zip(told.pairs.tolist(), told.outcomes.tolist(), strict=True)
        if {first, second} == {item, other}
    ]
    return int(sum(outcomes)), len(outcomes)


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_each_is_preferred_with_the_odds_of_the_merits(beta: float) -> None:
    values = torch.tensor([1e-5, 1.3e-5, 2e-5])
    told = simulate_preferences(["a", "b", "c"], values, 9000, beta)
    for item, other in [(0, 1), (2, 0), (1, 2)]:
        merit, against = float(values[item]) ** beta, float(values[other]) ** beta
        assert stats.binomtest(*wins(told, item, other), merit / (merit + against)).pvalue > 1e-4


def test_a_tenth_of_a_decade_is_told_apart_in_four_of_five() -> None:
    won, met = wins(simulate_preferences(["a", "b"], torch.tensor([10**-0.1, 1.0]), 20_000), 1, 0)
    assert met == 20_000
    assert won / met == pytest.approx(0.8, abs=0.01)


def test_two_different_molecules_are_drawn_evenly() -> None:
    told = simulate_preferences(list("abcd"), torch.ones(4), 12_000)
    met = Counter(map(tuple, told.pairs.tolist()))
    assert set(met) == {(first, second) for first in range(4) for second in range(4) if first != second}
    assert stats.chisquare(list(met.values())).pvalue > 1e-4
    assert set(told.outcomes.tolist()) == {0.0, 1.0}
    assert (told.smiles, told.pairs.dtype, told.outcomes.dtype) == (list("abcd"), torch.int64, torch.float32)


def test_the_seed_decides_and_the_unit_of_the_values_does_not() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    told = simulate_preferences(list("abc"), values, 200, seed=3)
    again = simulate_preferences(list("abc"), 1024 * values, 200, seed=3)
    assert torch.equal(told.pairs, again.pairs)
    assert torch.equal(told.outcomes, again.outcomes)
    other = simulate_preferences(list("abc"), values, 200, seed=4)
    assert not torch.equal(told.pairs, other.pairs)


@pytest.mark.parametrize(
    ("smiles", "values", "count", "beta", "message"),
    [
        (["a"], [1.0], 3, 1.0, "at least two molecules, a value of each and at least one pair, got 1, 1 and 3"),
        (["a", "b"], [1.0], 3, 1.0, "got 2, 1 and 3"),
        (["a", "b"], [1.0, 2.0], 0, 1.0, "got 2, 2 and 0"),
        (["a", "b"], [0.0, 2.0], 3, 1.0, r"values above 0 and beta >= 0, got a least value of 0 and 1\.0"),
        (["a", "b"], [torch.nan, 2.0], 3, 1.0, "values above 0"),
        (["a", "b"], [1.0, 2.0], 3, -1.0, r"got a least value of 1 and -1\.0"),
        (["a", "b"], [1.0, 2.0], 3, torch.inf, "and inf"),
    ],
)
def test_bad_settings_are_refused(
    smiles: list[str], values: list[float], count: int, beta: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_preferences(smiles, torch.tensor(values), count, beta)


def test_the_command_line_writes_a_table_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")
    table, to = tmp_path / "units.csv", tmp_path / "new" / "pairs.csv"
    rows = [f"{unit},{10.0**-row}" for row, unit in enumerate(UNITS)]
    table.write_text("\n".join(["mol_smiles,conductivity", *rows]))
    given = ["--table", str(table), "--count", "50", "--beta", "100", "--seed", "1", "--to", str(to)]
    main(given)
    assert capsys.readouterr().out == f"50 simulated preferences among 4 molecules: {to}\n"
    found = read_preferences(to)
    assert len(found.pairs) == 50
    better = [UNITS.index(found.smiles[a]) < UNITS.index(found.smiles[b]) for a, b in found.pairs.tolist()]
    assert found.outcomes.tolist() == [float(first) for first in better]  # a decade to the power 100 is beyond doubt
    before = to.read_bytes()
    with pytest.raises(SystemExit):
        main([*given, "--seed", "2"])
    assert "is there already; choose another name, or move it away" in capsys.readouterr().err
    assert to.read_bytes() == before
