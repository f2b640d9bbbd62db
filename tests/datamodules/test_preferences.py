"""Pairs as tensors: who is on which side, what is read back, and what is preferred."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from constrained_diffusion.datamodules import PolymerDataModule, PreferenceDataModule
from constrained_diffusion.domains.polymers.preferences.model import MeritCNN
from constrained_diffusion.domains.polymers.spelling import along_backbone
from constrained_diffusion.domains.polymers.split import preferences_and_judge
from constrained_diffusion.domains.polymers.table import NAME

Make = Callable[..., PreferenceDataModule]
UNITS = {f"[Cu]{'C' * n}{end}[Au]": 1 + 7 * n % 41 + i / 2 for n in range(1, 21) for i, end in enumerate(("O", "N"))}


def more(a: str, b: str) -> float:
    """Return 1 where the first has more carbons, 0 where the second has, 0.5 for as many."""
    return (1 + (a.count("C") > b.count("C")) - (a.count("C") < b.count("C"))) / 2


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "polymers" / NAME
    path.parent.mkdir()
    path.write_text("\n".join(["mol_smiles,conductivity", *(f"{unit},{value}" for unit, value in UNITS.items())]))
    return path


@pytest.fixture
def simulated(table: Path) -> Make:
    """Pairs of the table, of which the one of higher conductivity is preferred for sure."""

    def make(**settings: Any) -> PreferenceDataModule:
        given = {"table": str(table), "count": 200, "beta": 1e6, "length": 26, "held_out": 0.4, "batch_size": 8}
        return PreferenceDataModule(**{**given, **settings})

    return make


@pytest.fixture
def told(tmp_path: Path) -> Make:
    """Every pair of twelve units once, spelt from the other end; the one of more carbons is preferred."""

    def make(**settings: Any) -> PreferenceDataModule:
        names = [f"[Au]{end}{'C' * n}[Cu]" for n in range(1, 7) for end in ("O", "N")]
        both = [(a, b) if (i + j) % 2 else (b, a) for i, a in enumerate(names) for j, b in enumerate(names[:i])]
        rows = [f"{a},{b},{more(a, b)}" for a, b in both]
        (tmp_path / "pairs.csv").write_text("\n".join(["first,second,preferred", *rows]))
        return PreferenceDataModule(
            **{"pairs": str(tmp_path / "pairs.csv"), "length": 12, "held_out": 1 / 3, **settings}
        )

    return make


def pairs(data: PreferenceDataModule, side: int) -> list[tuple[str, str, float]]:
    """Return what the tensors of a side say, read back."""
    rows = data.data[side]
    assert rows.target is not None
    first, second = (data.vocabulary.decode(rows.clean[:, one].argmax(1)) for one in (0, 1))
    return list(zip(first, second, rows.target.tolist(), strict=True))


def molecules(data: PreferenceDataModule, side: int) -> set[str]:
    return {unit for *pair, _ in pairs(data, side) for unit in pair}


@pytest.mark.parametrize("notation", ["smiles", "postfix"])
def test_simulated_pairs_are_read_back_and_the_higher_is_preferred(simulated: Make, notation: str) -> None:
    data = simulated(notation=notation)
    assert (len(pairs(data, 0)), len(pairs(data, 1))) == (200, 20)
    for side in (0, 1):
        assert all(outcome == float(UNITS[a] > UNITS[b]) for a, b, outcome in pairs(data, side))
        clean = data.data[side].clean
        assert clean.shape[1:] == data.sample_shape == (2, len(data.vocabulary), 26)
        assert torch.equal(clean, clean.square())
        assert torch.equal(clean.sum(2), torch.ones(len(clean), 2, 26))


def test_no_molecule_is_on_two_sides_and_the_judges_are_on_none(simulated: Make, table: Path) -> None:
    data = simulated(split_seed=3, count=2000)
    train, held_out = molecules(data, 0), molecules(data, 1)
    assert (len(train), len(held_out)) == (18, 16)
    assert not train & held_out
    generator = PolymerDataModule(str(table), length=26, held_out=0.4, split_seed=3)
    spelt = generator.table.smiles
    assert held_out == {spelt[row] for row in generator.split[1]}  # the same split as the generator's
    judge = {spelt[row] for row in preferences_and_judge(generator.split[0])[1]}
    assert not judge & (train | held_out)


def test_a_network_of_another_vocabulary_is_refused(simulated: Make) -> None:
    data = simulated()
    tokens = data.vocabulary.tokens[1:]
    module = SimpleNamespace(network=MeritCNN(tokens[::-1]))
    data.trainer = SimpleNamespace(lightning_module=module)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"the network reads valence with the tokens .*, but the data has val"):
        data.setup("fit")
    module.network = MeritCNN(tokens, notation="postfix")  # of the same tokens
    data.setup("fit")


def test_the_split_seed_keys_units_pairs_and_outcomes(simulated: Make) -> None:
    assert pairs(simulated(beta=1.0, split_seed=1), 0) == pairs(simulated(beta=1.0, split_seed=1, seed=5), 0)
    assert molecules(simulated(split_seed=1), 1) != molecules(simulated(split_seed=2), 1)
    wrong = sum(outcome != float(UNITS[a] > UNITS[b]) for a, b, outcome in pairs(simulated(beta=1.0), 0))
    assert 20 < wrong < 80  # unsure ones


def test_the_table_is_looked_for_in_the_data_folder(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSTRAINED_DIFFUSION_DATA", str(table.parent.parent))
    assert len(PreferenceDataModule(count=30, length=26).data[1]) == 3
    table.rename(table.with_name("mine.csv"))
    with pytest.raises(FileNotFoundError, match="expected a table of polymers at"):
        PreferenceDataModule().data  # noqa: B018


def test_given_pairs_stay_whole_or_are_left_out(told: Make) -> None:
    data = told()
    train, held_out = pairs(data, 0), pairs(data, 1)
    assert (len(train), len(held_out)) == (8 * 7 / 2, 4 * 3 / 2)  # of 8 and of 4 molecules
    assert not molecules(data, 0) & molecules(data, 1)
    for a, b, outcome in train + held_out:
        assert a.startswith("[Cu]")  # spelt along the backbone, as a generator's are
        assert outcome == more(a, b)
    assert {outcome for *_, outcome in train} == {0.0, 0.5, 1.0}


def test_the_vocabulary_is_the_molecules_or_the_one_given(told: Make) -> None:
    assert told().vocabulary.tokens[1:] == ["C", "N", "O", "[Au]", "[Cu]"]
    order = ["[Cu]", "S", "O", "N", "C", "[Au]", ")"]
    data = told(tokens=order, notation="smiles")
    assert (data.vocabulary.tokens[1:], data.vocabulary.notation) == (order, "smiles")
    assert data.sample_shape == (2, 8, 12)
    assert pairs(data, 0) == pairs(told(), 0)
    assert bool((data.data[0].clean[:, :, 1, 0] == 1).all())  # every unit begins with [Cu]


def test_contradictions_are_refused_unless_kept(told: Make) -> None:
    path = told().pairs
    assert path is not None
    path.write_text(path.read_text() + "\n[Au]OC[Cu],[Au]NC[Cu],1")
    with pytest.raises(ValueError, match="line 68 of '.*' contradicts line 2"):
        PreferenceDataModule(str(path), length=12).data  # noqa: B018
    assert len(PreferenceDataModule(str(path), keep_contradictions=True, length=12, held_out=0.4).data[0]) > 0


def test_batches_have_outcomes_and_the_held_out_pairs_are_the_test(told: Make) -> None:
    data = told(batch_size=4, eval_batch_size=5)
    batch = next(iter(data.train_dataloader()))
    assert (batch.clean.shape, batch.target.shape) == ((4, *data.sample_shape), (4,))
    assert batch.target.dtype == torch.float32
    for loader in (data.test_dataloader(), data.val_dataloader()[0]):
        found = list(loader)
        assert [len(one.clean) for one in found] == [5, 1]
        assert torch.equal(torch.cat([one.clean for one in found]), data.data[1].clean)
        assert torch.equal(torch.cat([one.target for one in found]), data.data[1].target)


def test_bad_data_are_refused(told: Make, simulated: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has the token 'N', which is not among the 4 of the vocabulary"):
        told(tokens=["C", "O", "[Au]", "[Cu]"]).data  # noqa: B018
    with pytest.raises(ValueError, match="tokens, more than the 5 of a sample"):
        told(length=5).data  # noqa: B018
    with pytest.raises(ValueError, match="at least two molecules, .* got 1, 1"):
        simulated(held_out=0.02).data  # noqa: B018
    with pytest.raises(FileNotFoundError, match="expected a table of preferences at"):
        PreferenceDataModule(str(tmp_path / "none.csv")).data  # noqa: B018
    few = tmp_path / "few.csv"
    few.write_text("first,second,preferred\n[Au]OC[Cu],[Au]OCC[Cu],1")
    with pytest.raises(ValueError, match="few.csv' leaves 0 pairs to train on and 0 held out, since"):
        PreferenceDataModule(str(few), held_out=0.5).data  # noqa: B018
    few.write_text("first,second,preferred\nCO,CC,1\nCO,CN,1\nCC,CN,1\nCCC,CCO,1\nCCC,CC,0\nCCC,CO,0\nCCC,CN,1")
    with pytest.raises(ValueError, match=r"expected a repeat unit with its ends \[Cu\] and \[Au\], got 'C"):
        PreferenceDataModule(str(few), held_out=0.4).data  # noqa: B018
    assert along_backbone("[Au]OC[Cu]") == "[Cu]CO[Au]"


def test_spellings_of_one_molecule_are_one(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("first,second,preferred\n[Cu]CO[Au],[Cu]CN[Au],1\nN(C[Cu])[Au],O(C[Cu])[Au],1\n")
    with pytest.raises(ValueError, match=r"line 3 of '.*' contradicts line 2"):
        PreferenceDataModule(pairs=str(path)).data  # noqa: B018
    path.write_text("first,second,preferred\n[Cu]CO[Au],O(C[Cu])[Au],1\n")
    with pytest.raises(ValueError, match="line 2 of '.*' expects two different molecules"):
        PreferenceDataModule(pairs=str(path)).data  # noqa: B018
    path.write_text("first,second,preferred\n[Cu]CO[Au],CCO,1\n")
    with pytest.raises(ValueError, match="line 2 of '.*': expected a repeat unit with its ends"):
        PreferenceDataModule(pairs=str(path)).data  # noqa: B018
