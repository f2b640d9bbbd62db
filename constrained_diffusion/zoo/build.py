"""Makes a zoo entry from a finished training run: copies the weights, measures them, and writes the card.

    python -m constrained_diffusion.zoo.build classifier --export <run>/export --data_dir <folder with MNIST/>

One function per entry. Every figure in a card is measured here; seed and time come from the run's own record.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.constraints.classifiers import PretrainedClassifier
from constrained_diffusion.datamodules.base import TensorRows
from constrained_diffusion.datamodules.mnist import MNISTDataModule
from constrained_diffusion.metrics.features import ReferenceFeatures
from constrained_diffusion.saved import CONFIG, WEIGHTS
from constrained_diffusion.zoo import cards
from constrained_diffusion.zoo.denoiser import denoiser
from constrained_diffusion.zoo.planner import planner
from constrained_diffusion.zoo.polymers import generator, preference
from constrained_diffusion.zoo.polymers import judge as polymer_judge

ZOO = Path(__file__).parent
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
        if batch.condition is None:
            raise ValueError("batches expects rows with labels as their condition; build the data with_labels: true.")
        yield batch.clean, batch.condition


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


def classifier(target: Path, export: Path, data_dir: str | None) -> cards.Card:
    """The classifier that a class constraint is trained with."""
    _, network, test = _prepare(target, export, data_dir)
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


def judge(target: Path, export: Path, data_dir: str | None) -> cards.Card:
    """The judge that measures fine-tuned models, with its features of real digits."""
    train, network, test = _prepare(target, export, data_dir)
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


ENTRIES: dict[str, tuple[str, Callable[[Path, Path, str | None], cards.Card]]] = {
    "classifier": ("mnist_classifier", classifier),
    "judge": ("mnist_judge", judge),
    "denoiser": ("mnist_denoiser", denoiser),
    "planner": ("maze2d_planner", planner),
    "generator": ("polymer_generator", generator),
    "preference": ("polymer_preference", preference),
    "polymer_judge": ("polymer_judge", polymer_judge),
}


def build(entry: str, export: str | Path, data_dir: str | None = None, zoo_dir: str | Path = ZOO) -> Path:
    """Make one entry and return its folder.

    Args:
        entry: a key of `ENTRIES`.
        export: the folder that the training run exported.
        data_dir: where the data lies; see `MNISTDataModule`.
        zoo_dir: where the entry's folder is written; the package's own zoo by default.

    Raises:
        ValueError: no such entry.
    """
    if entry not in ENTRIES:
        raise ValueError(f"no zoo entry is called '{entry}'; there are {', '.join(ENTRIES)}.")
    name, make = ENTRIES[entry]
    target = Path(zoo_dir) / name
    target.mkdir(parents=True, exist_ok=True)
    card = make(target, Path(export), data_dir)
    for file in target.rglob("*"):
        file.chmod(0o644 if file.is_file() else 0o755)  # safetensors writes files that only their owner may read
    cards.write(card, target)
    return target


def _prepare(target: Path, export: Path, data_dir: str | None) -> tuple[TensorRows, PretrainedClassifier, TensorRows]:
    network = PretrainedClassifier(str(export))  # refuses an export that is not whole, before anything is overwritten
    train, test = MNISTDataModule(data_dir, with_labels=True, held_out=10_000).data
    for file in (CONFIG, WEIGHTS):
        shutil.copyfile(export / file, target / file)
    return train, network, test


def _training(export: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((export / "training.json").read_text())
    return facts


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m constrained_diffusion.zoo.build", description=__doc__)
    parser.add_argument("entry", choices=sorted(ENTRIES))
    parser.add_argument(
        "--export", default=".", help="the folder that the training run exported; none for polymer_judge"
    )
    parser.add_argument("--data_dir", default=None, help="the folder that holds MNIST/, or PolyGen's table")
    parser.add_argument("--zoo_dir", default=ZOO, help="where to write; the package's own zoo by default")
    given = parser.parse_args(arguments)
    print(build(given.entry, given.export, given.data_dir, given.zoo_dir) / cards.CARD_TEXT)


if __name__ == "__main__":
    main()
