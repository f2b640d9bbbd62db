"""The zoo's classifier and judge of digits: their figures on test digits, and the judge's features of real ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.domains.images.classifiers import PretrainedClassifier
from constrained_diffusion.domains.images.features import ReferenceFeatures
from constrained_diffusion.runtime import cards
from constrained_diffusion.runtime.cards import DataMaker
from constrained_diffusion.runtime.data import TensorRows
from constrained_diffusion.runtime.stored_networks import CONFIG, WEIGHTS

MNIST = "MNIST, the 60,000 training digits (LeCun, Cortes, Burges); figures on the 10,000 test digits"
MNIST_LICENCE = "CC BY-SA 3.0"
REFERENCE = "reference.safetensors"
REFERENCE_DIGITS = 1000  #: training digits per class whose features are kept one by one


def batches(rows: TensorRows, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images `(B, *shape)` and labels `(B,)` of all rows in order.

    Raises:
        ValueError: the rows have no labels.
    """
    for start in range(0, len(rows), batch_size):
        batch = rows.__getitems__(list(range(start, min(start + batch_size, len(rows)))))
        if batch.target is None:
            raise ValueError("batches expects rows with labels as their target; build the data with_labels: true.")
        yield batch.clean, batch.target


@torch.no_grad()
def figures(classifier: PretrainedClassifier, rows: TensorRows) -> dict[str, Any]:
    """Measure a classifier on test rows: accuracy, accuracy per class, log loss, and how confident it is."""
    pairs = [(classifier(images), labels) for images, labels in batches(rows)]
    logits, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
    probabilities = logits.softmax(dim=1)
    correct = (probabilities.argmax(dim=1) == labels).double()
    per_class = [round(correct[labels == c].mean().item(), 4) for c in range(classifier.num_classes)]
    confidence = probabilities.amax(dim=1)
    return {
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "n": len(labels),
        "test_accuracy": correct.mean().item(),
        "test_accuracy_per_class": per_class,
        "test_log_loss": torch.nn.functional.cross_entropy(logits.double(), labels).item(),
        "share_confidence_above_0.9": (confidence > 0.9).double().mean().item(),
        "share_confidence_below_0.5": (confidence < 0.5).double().mean().item(),
    }


def classifier(target: Path, export: Path, data: DataMaker) -> cards.Card:
    """The classifier that a class constraint is trained with."""
    _, network, test = _prepare(target, export, data)
    return cards.Card(
        name=target.name,
        summary="A small smooth CNN for digits, (B, 1, 28, 28) in [0, 1]: what a class constraint is trained with.",
        data=MNIST,
        data_licence=MNIST_LICENCE,
        command="lightning fit --config pretrain/mnist_classifier.yaml",
        training=_training(export),
        figures=figures(network, test),
        notes=[
            "Trained on turned, zoomed and shifted digits, half of them blurred, faded and noised besides, because a "
            "constraint judges predicted clean samples, and those of high noise levels look so.",
            "The weights of the last step; nothing was selected on the test digits.",
        ],
    )


def judge(target: Path, export: Path, data: DataMaker) -> cards.Card:
    """The judge that measures fine-tuned models, with its features of real digits."""
    train, network, test = _prepare(target, export, data)
    reference = ReferenceFeatures.measure(network.features, batches(train), network.num_classes, REFERENCE_DIGITS)
    reference.save(target / REFERENCE)
    return cards.Card(
        name=target.name,
        summary="A small residual network for digits, (B, 1, 28, 28) in [0, 1]: the judge, which only measures.",
        data=MNIST,
        data_licence=MNIST_LICENCE,
        command="lightning fit --config pretrain/mnist_judge.yaml",
        training=_training(export),
        figures=figures(network, test),
        notes=[
            "Another architecture, seed, data order and augmentation than mnist_classifier's.",
            "The weights of the last step; nothing was selected on the test digits. No label smoothing: its confidence "
            "is itself a measure.",
            f"{REFERENCE}: its penultimate features of real training digits, by class: `features` are the first "
            f"{REFERENCE_DIGITS} of each digit in float16; `count`, `sum` and `outer` (the sum of x x^T) are over all "
            "of them in float64.",
        ],
    )


def _prepare(target: Path, export: Path, data: DataMaker) -> tuple[TensorRows, PretrainedClassifier, TensorRows]:
    network = PretrainedClassifier(str(export))  # refuses an export that is not whole, before anything is overwritten
    train, test = data(with_labels=True, held_out=10_000).data
    for file in (CONFIG, WEIGHTS):
        shutil.copyfile(export / file, target / file)
    return train, network, test


def _training(export: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((export / "training.json").read_text())
    return facts
