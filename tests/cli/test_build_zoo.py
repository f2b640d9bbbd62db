import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from constrained_diffusion.cli import build_zoo as build
from constrained_diffusion.domains.images import zoo_classifiers
from constrained_diffusion.domains.images.classifiers import DigitCNN, DigitResNet, load_classifier
from constrained_diffusion.runtime import cards
from constrained_diffusion.runtime.stored_networks import save_network

COUNTS = {"train": 40, "t10k": 30}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder in MNIST's own format, of random images."""
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for part, n in COUNTS.items():
        images = numbers.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(np.array([2051, n, 28, 28], ">i4").tobytes() + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([2049, n], ">i4").tobytes() + labels.tobytes())
    return folder


def export(network, folder):
    save_network(network.eval(), folder)
    (folder / "training.json").write_text(json.dumps({"seed": 5, "seconds": 7}))
    return folder


def test_classifier_entry(data_dir, tmp_path):
    source = export(DigitCNN(width=2), tmp_path / "export")
    build.main(["classifier", "--export", str(source), "--data_dir", str(data_dir), "--zoo_dir", str(tmp_path)])
    card = cards.read(tmp_path / "mnist_classifier")
    assert cards.mismatches(tmp_path / "mnist_classifier") == []
    assert set(card["sha256"]) == {"config.json", "model.safetensors"}
    assert card["training"] == {"seed": 5, "seconds": 7}
    raw = (data_dir / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    images = torch.tensor(np.frombuffer(raw, np.uint8).copy()).reshape(-1, 1, 28, 28) / 255
    probabilities = load_classifier(source).eval()(images).softmax(1).detach().numpy()
    hits = np.arange(30) % 10 == probabilities.argmax(1)
    figures = card["figures"]
    assert figures["n"] == 30
    assert figures["test_accuracy"] == pytest.approx(hits.mean())
    assert figures["test_accuracy_per_class"][3] == pytest.approx(hits[3::10].mean(), abs=1e-4)
    assert figures["share_confidence_below_0.5"] == pytest.approx((probabilities.max(1) < 0.5).mean())
    assert figures["test_log_loss"] == pytest.approx(-np.log(probabilities[np.arange(30), np.arange(30) % 10]).mean())


def test_judge_entry_holds_features_of_training_digits(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo_classifiers, "REFERENCE_DIGITS", 3)
    target = build.build("judge", export(DigitResNet(width=4), tmp_path / "export"), str(data_dir), tmp_path)
    reference = load_file(target / "reference.safetensors")
    assert reference["features"].shape == (10, 3, 16)
    assert reference["count"].tolist() == [4.0] * 10
    assert "reference.safetensors" in cards.read(target)["sha256"]


def test_unknown_entry(tmp_path):
    with pytest.raises(ValueError, match="no zoo entry is called 'oracle'; there are classifier, "):
        build.build("oracle", tmp_path)


def test_an_export_that_is_not_whole_leaves_the_entry_alone(data_dir, tmp_path):
    source = export(DigitCNN(width=2), tmp_path / "export")
    target = build.build("classifier", source, str(data_dir), tmp_path)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    (source / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="no complete safetensors file"):
        build.build("classifier", source, str(data_dir), tmp_path)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
