import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from constrained_diffusion.domains.images.classifiers import (
    DigitCNN,
    DigitResNet,
    PretrainedClassifier,
    load_classifier,
)
from constrained_diffusion.runtime import assets, cards
from constrained_diffusion.runtime.stored_networks import save_network

CLASSIFIERS = {"DigitCNN": DigitCNN, "DigitResNet": DigitResNet}
DATA = os.environ.get("CONSTRAINED_DIFFUSION_DATA")
every_class = pytest.mark.parametrize("name", sorted(CLASSIFIERS))
every_weight = pytest.mark.parametrize("name", ["mnist_classifier", "mnist_judge"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_network(DigitCNN(width=2), tmp_path)
    return tmp_path


@every_class
def test_logits_are_the_heads_answer_to_the_features(name):
    network = CLASSIFIERS[name](num_classes=7).eval()
    images = torch.rand(3, 1, 28, 28)
    features = network.features(images)
    assert features.shape == (3, network.num_features) == (3, 64)
    assert network.num_classes == 7
    logits = network(images)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, features @ network.head.weight.T + network.head.bias)


@every_class
def test_rows_do_not_see_each_other_in_eval_mode(name):
    network = CLASSIFIERS[name]().eval()
    images = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(network(images)[2:3], network(images[2:3]), rtol=1e-4, atol=1e-5)


@every_class
def test_gradient_reaches_every_part_of_the_image(name):
    torch.manual_seed(0)
    images = torch.rand(1, 1, 28, 28, requires_grad=True)
    CLASSIFIERS[name]().eval()(images)[0, 4].backward()
    assert (images.grad != 0).float().mean() > 0.9


@every_class
def test_padding_of_digits_is_cropped(name):
    network, images = CLASSIFIERS[name]().eval(), torch.rand(2, 1, 28, 28)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    torch.testing.assert_close(network(padded), network(images))


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 64, 64), (2, 1, 27, 28), (1, 28, 28)])
def test_images_of_another_kind(shape):
    with pytest.raises(ValueError, match=r"expects images of shape \(B, 1, 28, 28\).*got \("):
        DigitCNN()(torch.zeros(shape))


def test_too_few_classes():
    with pytest.raises(ValueError, match="DigitResNet expects num_classes >= 2, got 1"):
        DigitResNet(num_classes=1)


@every_class
def test_round_trip(name, tmp_path):
    network = CLASSIFIERS[name](num_classes=3, width=4)
    network(torch.rand(8, 1, 28, 28))  # moves the running statistics, which must be saved too
    save_network(network, tmp_path / "new" / "folder")
    again = PretrainedClassifier(str(tmp_path / "new" / "folder"))
    images = torch.rand(2, 1, 28, 28)
    assert again.num_classes == 3
    torch.testing.assert_close(again(images), network.eval()(images), rtol=0, atol=0)
    torch.testing.assert_close(again.features(images), network.features(images), rtol=0, atol=0)
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"config.json", "model.safetensors"}


def test_pretrained_is_frozen_and_stays_in_eval_mode(folder):
    classifier = PretrainedClassifier(str(folder)).train()
    assert classifier.training
    assert not any(module.training for module in classifier.network.modules())
    assert not any(p.requires_grad for p in classifier.parameters())
    images = torch.rand(1, 1, 28, 28, requires_grad=True)
    classifier(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_truncated_weights(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="no complete safetensors file.*may be truncated"):
        load_classifier(folder)


def test_weights_of_another_network(folder):
    (folder / "config.json").write_text(json.dumps({"class": "DigitCNN", "init_args": {"width": 3}}))
    with pytest.raises(ValueError, match=r"does not hold the weights of DigitCNN\(\{'width': 3\}\)"):
        load_classifier(folder)


def test_unknown_class(folder):
    (folder / "config.json").write_text(json.dumps({"class": "Oracle", "init_args": {}}))
    with pytest.raises(ValueError, match="unknown class 'Oracle'; known are DigitCNN, DigitResNet"):
        load_classifier(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"class": "DigitCNN"}'])
def test_config_of_another_kind(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json should read"):
        load_classifier(folder)


def test_missing_file(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        load_classifier(folder)


def test_unknown_name_lists_the_zoo():
    with pytest.raises(ValueError, match=r"'mnist_oracle' is neither; the zoo has .*mnist_classifier.*mnist_judge"):
        PretrainedClassifier("mnist_oracle")


def test_only_registered_classes_are_saved(tmp_path):
    with pytest.raises(TypeError, match="expects one of DigitCNN, DigitResNet.*got Linear"):
        save_network(nn.Linear(2, 2), tmp_path)


@every_weight
def test_card_knows_the_files(name):
    assert cards.mismatches(assets.path(name)) == []
    assert (assets.path(name) / "model.safetensors").stat().st_size < 1.1e6


@every_weight
@pytest.mark.skipif(DATA is None, reason="CONSTRAINED_DIFFUSION_DATA does not name a folder with MNIST/")
def test_accuracy_on_the_test_digits(name):
    from torchvision.datasets import MNIST

    digits = MNIST(DATA, train=False)
    classifier = PretrainedClassifier(name)
    with torch.no_grad():
        logits = torch.cat([classifier(rows[:, None] / 255) for rows in digits.data.split(500)])
    accuracy = (logits.argmax(1) == digits.targets).double().mean().item()
    assert accuracy >= 0.992
    figures = cards.read(assets.path(name))["figures"]
    assert accuracy == pytest.approx(figures["test_accuracy"], abs=2e-4)
    confident = (logits.softmax(1).amax(1) > 0.9).double().mean().item()
    assert confident == pytest.approx(figures["share_confidence_above_0.9"], abs=5e-4)


@pytest.mark.skipif(DATA is None, reason="CONSTRAINED_DIFFUSION_DATA does not name a folder with MNIST/")
def test_reference_features_are_the_judges_own():
    from safetensors.torch import load_file
    from torchvision.datasets import MNIST

    digits, judge = MNIST(DATA, train=True), PretrainedClassifier("mnist_judge")
    reference = load_file(assets.path("mnist_judge") / "reference.safetensors")
    assert reference["features"].shape == (10, 1000, 64)
    assert reference["count"].tolist() == digits.targets.bincount().tolist()
    sevens = digits.data[digits.targets == 7][:200, None] / 255
    with torch.no_grad():
        torch.testing.assert_close(reference["features"][7, :200].float(), judge.features(sevens), rtol=2e-3, atol=2e-3)
    mean = reference["sum"][7] / reference["count"][7]
    spread = reference["outer"][7].diagonal() / reference["count"][7] - mean**2
    assert (spread > 0).all()
    gap = (reference["features"][7].double().mean(0) - mean) / (spread / 1000).sqrt()
    assert gap.abs().max() < 6  # the first 1,000 sevens are a sample of all of them


def test_a_classifier_whose_config_claims_what_it_has_not(tmp_path: Path) -> None:
    save_network(DigitCNN(width=2), tmp_path)
    (tmp_path / "config.json").write_text('{"class": "DigitCNN", "init_args": {"width": 2000}}')
    with pytest.raises(ValueError, match="describes a network of more than"):
        load_classifier(tmp_path)
