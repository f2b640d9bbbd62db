from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")

from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from constrained_diffusion.domains.polymers.notation import NOTATIONS
from constrained_diffusion.domains.polymers.reference import TOKENS, UNITS, Reference
from constrained_diffusion.domains.polymers.vocabulary import Vocabulary
from constrained_diffusion.runtime import assets

STRINGS = ["[Cu]CCO[Au]", "[Cu]OCCC[Au]", "[Cu]CC("]  # the last is no molecule


@pytest.fixture(params=NOTATIONS)
def notation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, notation: str) -> Path:
    Reference(Vocabulary(["C", "[Au]", "O", "[Cu]", "Cl"], notation), STRINGS).save(tmp_path / "new")
    return tmp_path / "new"


def test_what_is_saved_is_loaded(folder: Path, notation: str) -> None:
    found = Reference.load(str(folder))
    assert found.vocabulary.tokens[1:] == ["C", "[Au]", "O", "[Cu]", "Cl"]  # in their order, which is no alphabet's
    assert found.vocabulary.notation == notation
    assert found.units == STRINGS


def test_units_are_known_in_any_spelling(folder: Path) -> None:
    known = Reference.load(str(folder)).known
    for string in STRINGS[:2]:
        molecule = Chem.MolFromSmiles(string)
        assert all(Chem.MolToSmiles(Chem.MolFromSmiles(Chem.MolToSmiles(molecule, doRandom=True))) in known
                   for _ in range(5))  # fmt: skip
    assert Chem.MolToSmiles(Chem.MolFromSmiles("[Cu]CCCO[Au]")) not in known
    assert len(known) == 2


def test_fingerprints_are_rdkits() -> None:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    found = Reference(Vocabulary(["C"]), STRINGS[:2]).fingerprints
    for row, string in zip(found, STRINGS, strict=False):
        assert row.nonzero()[:, 0].tolist() == list(generator.GetFingerprint(Chem.MolFromSmiles(string)).GetOnBits())
    assert found.shape == (2, 2048)
    assert torch.equal(found, found.clamp(0, 1))
    with pytest.raises(ValueError, match=r"expected molecules, got '.*' \(row 2\)"):
        Reference(Vocabulary(["C"]), STRINGS).fingerprints  # noqa: B018


def test_a_zoo_name_finds_its_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "CARD.md").write_text("a card")
    monkeypatch.setattr(assets, "FOLDER", folder.parent)
    assert Reference.load("new").units == STRINGS


def test_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="'nowhere' has no vocabulary.json and no units.txt; give the name of zoo"
    ):
        Reference.load("nowhere")
    (folder / UNITS).unlink()
    with pytest.raises(FileNotFoundError, match="new' has no units.txt; give"):
        Reference.load(str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"C": 1}', "vocabulary.json' should hold a notation and a list of tokens; write it with `Reference.save`"),
        ('{"notation": "smiles", "tokens": ["C", 1]}', "should hold a notation and a list of tokens"),
        ('["C"]', "vocabulary.json' should hold a JSON object"),
        ('{"tokens": ["C", ', "vocabulary.json' is no valid JSON, perhaps truncated"),
        ('{"tokens": ["C"]}', "notation must be one of smiles, postfix, valence, got 'None'"),
        ('{"notation": "smiles", "tokens": ["C", "C"]}', "expected each token of a vocabulary once"),
        ('{"notation": "postfix", "tokens": ["<end>"]}', "vocabulary once, and '<end>' not at all"),
    ],
)
def test_damaged_vocabularies_are_refused(folder: Path, text: str, message: str) -> None:
    (folder / TOKENS).write_text(text)
    with pytest.raises(ValueError, match=message):
        Reference.load(str(folder))
