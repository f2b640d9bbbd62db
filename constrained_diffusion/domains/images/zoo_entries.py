"""The zoo's images. Here the denoiser: its figures by the judge, and its `before` samples, drawn once for all runs."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.domains.images.class_evaluation import ClassEvaluation
from constrained_diffusion.domains.images.classifiers import PretrainedClassifier
from constrained_diffusion.domains.images.zoo_classifiers import classifier, judge
from constrained_diffusion.domains.images.zoo_latent import autoencoder, flow, halve
from constrained_diffusion.runtime import assets, cards
from constrained_diffusion.runtime.cards import DataMaker, ZooEntry
from constrained_diffusion.runtime.tracking import tracked

COUNT = 5000  #: seeds 0 .. 4999
TRAINING_COUNT = 1000  #: samples to fine-tune on
FIRST_TRAINING_SEED, TRAINING = 1_000_000, Sampler(steps=25)  #: as `GeneratedDataModule` would draw them
PRECISION = "bf16-mixed"  #: of the configs that fine-tune it
BEFORE = Sampler(steps=20)  #: the evaluation sampler
QUALITY = Sampler(steps=50)  #: the sampler of the card's quality figures


@torch.no_grad()
def draw(denoiser: PretrainedDenoiser, sampler: Sampler, count: int, first: int = 0, batch_size: int = 250) -> Tensor:
    """Return the samples of seeds first .. first + count - 1, `(count, *shape)` in [0, 1], on the CPU."""
    samples, every = [], torch.arange(first, first + count)
    for seeds in tracked(every.split(batch_size), f"{count} samples, {sampler.steps} steps"):
        z = seeded_noise(seeds.tolist(), denoiser.sample_shape, sampler, denoiser.noise_schedule)
        with torch.autocast("cpu", torch.bfloat16) if PRECISION == "bf16-mixed" else nullcontext():
            samples.append(sampler(denoiser.predict, denoiser.noise_schedule, z))
    return denoiser.codec.decode(denoiser.codec.clamp(torch.cat(samples)))


def measure(samples: Tensor, label: int | None = None) -> dict[str, Any]:
    """Return the judge's figures on `samples`."""
    evaluation = ClassEvaluation(PretrainedClassifier("mnist_judge"), reference="mnist_judge", label=label)
    for batch in samples.split(500):
        evaluation.update(batch)
    return evaluation.compute()


def denoiser(target: Path, export: Path, data: DataMaker, count: int = COUNT) -> cards.Card:
    """Copy an exported pipeline to `target`, measure it, and draw its `before` samples; `data` is not needed."""
    PretrainedDenoiser(str(export))  # refuses an export that is not whole, before anything is overwritten
    shutil.rmtree(target)
    shutil.copytree(export, target, ignore=shutil.ignore_patterns("training.json"))
    training = json.loads((export / "training.json").read_text())
    halve(target / "unet" / "diffusion_pytorch_model.safetensors")
    model = PretrainedDenoiser(str(target))
    quality = draw(model, QUALITY, count)
    before = draw(model, BEFORE, count)
    assets.write_sheet(before, target / "samples.png")
    assets.write_sheet(draw(model, TRAINING, TRAINING_COUNT, FIRST_TRAINING_SEED), target / "training.png")
    found, found_before = measure(quality)["metrics"], measure(before)["metrics"]
    real = cards.read(assets.path("mnist_judge"))["figures"]["share_confidence_above_0.9"]
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        f"DDIM {QUALITY.steps} steps, n": count,
        "share_confidence_above_0.9": found["confident_rate"],
        "share_confidence_above_0.9_of_real_test_digits": real,
        "class_shares": [c / count for c in found["class_histogram"]],
        "fid": found["fid"],
        f"before: DDIM {BEFORE.steps} steps, n": count,
        "before_class_histogram": found_before["class_histogram"],
        "before_non_digit_rate": found_before["non_digit_rate"],
        "before_fid": found_before["fid"],
    }
    before_by, training_by = (asdict(sampler.of(model.noise_schedule)) for sampler in (BEFORE, TRAINING))
    how = {"precision": PRECISION, "size": model.sample_shape[-1]}
    return cards.Card(
        name=target.name,
        summary="A small UNet noise predictor for MNIST digits, (B, 1, 28, 28): the model that the demos fine-tune.",
        data="MNIST, the 60,000 training digits (LeCun, Cortes, Burges)",
        data_licence="CC BY-SA 3.0",
        command="lightning fit --config pretrain/mnist_denoiser.yaml",
        training=training,
        figures=figures,
        notes=[
            "EMA weights of the last step, in half precision; the run was stopped and resumed from its own checkpoint.",
            f"samples.png: the `before` samples of the evaluation seeds 0 .. {count - 1}, 100 in a row, from which "
            "`test` measures the pretrained model without sampling it again (`--recompute` samples it).",
            f"training.png: samples of the seeds {FIRST_TRAINING_SEED} and on, on which fits train without drawing.",
        ],
        samples={"sampler": before_by, **how, "count": count},
        training_samples={
            "sampler": training_by,
            **how,
            "count": TRAINING_COUNT,
            "first_seed": FIRST_TRAINING_SEED,
        },
    )


ENTRIES = {
    "classifier": ZooEntry("mnist_classifier", classifier, "MNISTDataModule"),
    "judge": ZooEntry("mnist_judge", judge, "MNISTDataModule"),
    "denoiser": ZooEntry("mnist_denoiser", denoiser, "MNISTDataModule"),
    "autoencoder": ZooEntry("mnist_autoencoder", autoencoder, "MNISTDataModule"),
    "flow": ZooEntry("mnist_flow", flow, "MNISTDataModule"),
}
