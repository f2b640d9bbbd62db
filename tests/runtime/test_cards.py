import hashlib
import json

import pytest

from constrained_diffusion.runtime import cards

CARD = cards.Card(
    name="tiny",
    summary="A network for tests.",
    data="none",
    data_licence="CC0",
    command="lightning fit --config tiny.yaml",
    training={"seed": 3},
    figures={"test_accuracy": 0.98765, "per_class": [0.5, 1.0], "n": 12},
    notes=["A note."],
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    cards.write(CARD, tmp_path)
    return tmp_path


def test_json_holds_everything_with_the_files_hashes(folder):
    content = json.loads((folder / "card.json").read_text())
    assert content["sha256"]["unet/model.safetensors"] == hashlib.sha256(b"weights").hexdigest()
    assert set(content["sha256"]) == {"unet/model.safetensors", "config.json"}
    assert content["figures"] == CARD.figures
    assert content["weights_licence"] == "Apache-2.0"
    assert cards.read(folder) == content


def test_text_says_the_same(folder):
    text = (folder / "CARD.md").read_text()
    for part in ("# tiny", "CC0", "`lightning fit --config tiny.yaml`", "| seed | 3 |", "| test accuracy | 0.9877 |",
                 "| per class | 0.5, 1 |", "- A note.", hashlib.sha256(b"weights").hexdigest()):  # fmt: skip
        assert part in text


def test_whole_folder_has_no_mismatch(folder):
    assert cards.mismatches(folder) == []


def test_changed_missing_and_added_files_are_found(folder):
    (folder / "unet" / "model.safetensors").write_bytes(b"other")
    (folder / "config.json").unlink()
    (folder / "new.txt").write_text("")
    assert cards.mismatches(folder) == ["config.json", "new.txt", "unet/model.safetensors"]


def test_folder_without_a_card(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no card\.json; write it with"):
        cards.read(tmp_path)
