from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from constrained_diffusion.datamodules.polymers import PolymerDataModule
from constrained_diffusion.domains.polymers.coding import coding
from constrained_diffusion.domains.polymers.reference import Reference
from constrained_diffusion.domains.polymers.repeat_units import canonical


@pytest.fixture
def module(tmp_path: Path) -> Any:
    path = tmp_path / "units.csv"
    rows = [f"[Au]{'C' * n}{end}[Cu],{n + i / 10}" for n in range(1, 21) for i, end in enumerate(("O", "N"))]
    path.write_text("mol_smiles,conductivity\n" + "\n".join(rows))

    def make(**settings: Any) -> PolymerDataModule:
        return PolymerDataModule(
            **{"path": str(path), "length": 26, "batch_size": 4, "held_out": 0.5, "spelling": "as_given", **settings}
        )

    return make


def strings(data: PolymerDataModule, side: int) -> list[str]:
    code = coding(data.coding, len(data.vocabulary))
    return data.vocabulary.decode(code.decode(data.data[side].clean))


@pytest.mark.parametrize("name", ["one_hot", "analog_bits", "ordinal"])
def test_every_unit_is_on_one_side_and_can_be_read_back(module: Any, name: str) -> None:
    data = module(coding=name)
    train, held_out = strings(data, 0), strings(data, 1)
    assert sorted(train + held_out) == sorted(data.table.smiles)
    assert len(held_out) == 20
    assert data.sample_shape == (coding(name, len(data.vocabulary)).channels, 26)


def test_the_high_class_alone_is_the_upper_share(module: Any) -> None:
    data = module(task="high")
    upper = ["[Au]" + 20 * "C" + "O[Cu]", "[Au]" + 20 * "C" + "N[Cu]", "[Au]" + 19 * "C" + "N[Cu]"]
    assert sorted(strings(data, 0) + strings(data, 1)) == sorted(upper)


@pytest.mark.parametrize("notation", ["smiles", "postfix", "valence"])
def test_classes_are_named_and_even_and_the_split_comes_first(module: Any, notation: str) -> None:
    data = module(task="conditional", split_seed=3, notation=notation)
    train, held_out = strings(data, 0), strings(data, 1)
    high = data.vocabulary.tokens.index("[Ag]"), data.vocabulary.tokens.index("[Ac]")
    named = [(data.data[side].clean[:, token] > 0.5).sum(1) for side in (0, 1) for token in high]
    assert all(set((a + b).tolist()) == {1} for a, b in (named[:2], named[2:]))  # each row once
    assert int(named[0].sum()) * 2 == len(train)
    assert set(train + held_out) == set(data.table.smiles)  # with no class in them
    upper = max(data.table.smiles, key=dict(zip(*data.table[:2], strict=True)).__getitem__)
    both = dict(zip(train + held_out, torch.cat([named[0], named[2]]).tolist(), strict=True))
    assert both[upper] == 1
    assert not set(train) & set(held_out)
    assert len(set(held_out)) == len(held_out) == 20


def test_a_class_without_units_is_told(module: Any) -> None:
    with pytest.raises(ValueError, match="'conditional' expects units of both classes, but .* 0 of the high one"):
        module(task="conditional", held_out=0.97, split_seed=1).data  # noqa: B018


def test_a_unit_that_a_notation_cannot_hold_is_named(tmp_path: Path) -> None:
    """Nitrogen with five bonds, which rdkit mends and the notation would tear apart."""
    path = tmp_path / "units.csv"
    rows = [f"[Au]{'C' * n}N(=O)=O[Cu],1" if n == 2 else f"[Au]{'C' * n}O[Cu],1" for n in range(1, 5)]
    rows[1] = "[Au]CC(N(=O)=O)O[Cu],1"
    path.write_text("mol_smiles,conductivity\n" + "\n".join(rows))
    settings = {"spelling": "as_given", "held_out": 0.25, "length": 20}
    with pytest.raises(ValueError, match=r"'\[Au\]CC\(N\(=O\)=O\)O\[Cu\]' .* is another molecule in the notation 'val"):
        PolymerDataModule(str(path), **settings).data  # noqa: B018
    assert len(PolymerDataModule(str(path), notation="postfix", **settings).data[0]) == 3


def test_the_split_depends_on_its_seed_alone(module: Any) -> None:
    assert strings(module(), 0) == strings(module(seed=5), 0)
    assert strings(module(), 0) != strings(module(split_seed=5), 0)


def test_an_export_is_a_reference_of_its_training_units(module: Any, tmp_path: Path) -> None:
    data = module(held_out=0.25)
    data.export(tmp_path / "export")
    found = Reference.load(str(tmp_path / "export"))
    assert found.vocabulary.same_tokens(data.vocabulary)
    assert found.units == [data.table.smiles[row] for row in data.split[0]]


def test_rows_that_are_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "units.csv"
    path.write_text("mol_smiles,conductivity\n[Au]CO[Cu],1\nCCO,2\n[Au]CN[Cu],2\n[Au]CS[Cu],3")
    with caplog.at_level("INFO"):
        data = PolymerDataModule(str(path), held_out=0.5, skip_invalid=True)
        assert len(data.data[0]) + len(data.data[1]) == 3
    assert "1 rows are no repeat units and are left out." in caplog.text


def test_bad_settings_are_refused(module: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task of all, high, conditional and a spelling of"):
        module(task="low")
    with pytest.raises(ValueError, match=r"has 2\d tokens, more than the 20"):
        module(length=20).data  # noqa: B018
    two = tmp_path / "two.csv"
    two.write_text("mol_smiles,conductivity\n[Au]CO[Cu],1\n[Au]CN[Cu],2")
    with pytest.raises(ValueError, match=r"leaves [01] units to train on and [01] held out for the task 'high'"):
        module(task="high", path=str(two)).data  # noqa: B018
    with pytest.raises(FileNotFoundError, match="expected a table of polymers at"):
        PolymerDataModule(path=str(tmp_path)).data  # noqa: B018


def test_batches_of_training_are_samples(module: Any) -> None:
    batch = next(iter(module().train_dataloader()))
    assert batch.clean.shape == (4, 6, 26)
    assert torch.equal(batch.clean.sum(1), torch.ones(4, 26))


def test_units_are_spelt_along_their_backbones(module: Any) -> None:
    data = module(spelling="backbone")
    found = strings(data, 0) + strings(data, 1)
    assert all(string.startswith("[Cu]") and string.endswith("[Au]") for string in found)
    given = module().table
    assert sorted(map(canonical, found)) == sorted(map(canonical, given.smiles))
