"""The zoo's latent model of digits: its autoencoder, and the class-conditional flow in the latents."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from constrained_diffusion.denoisers.autoencoder import Autoencoder
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.diffusion.sampler import Sampler, seeded_noise
from constrained_diffusion.domains.images.asked_evaluation import AskedClassEvaluation
from constrained_diffusion.domains.images.class_evaluation import ClassEvaluation, as_stored
from constrained_diffusion.domains.images.classifiers import PretrainedClassifier
from constrained_diffusion.domains.images.zoo_classifiers import MNIST, MNIST_LICENCE, batches
from constrained_diffusion.runtime import cards
from constrained_diffusion.runtime.cards import DataMaker
from constrained_diffusion.runtime.cpu_precision import computes_in_bfloat16
from constrained_diffusion.runtime.tracking import tracked

WEIGHTS = "diffusion_pytorch_model.safetensors"
COUNT = 5000  #: seeds 0 .. 4999, asked for the ten digits in turn
SCALES = (1.0, 1.5, 2.0, 3.0)  #: of guidance
SAMPLER = Sampler(steps=20)


@torch.no_grad()
def autoencoder(target: Path, export: Path, data: DataMaker) -> cards.Card:
    """Copy an exported autoencoder to `target`, and measure what it makes of the test digits."""
    Autoencoder(str(export))  # refuses an export that is not whole, before anything is overwritten
    shutil.rmtree(target)
    shutil.copytree(export, target, ignore=shutil.ignore_patterns("training.json"))
    codec, judge = Autoencoder(str(target)), PretrainedClassifier("mnist_judge")
    evaluation = ClassEvaluation(judge, reference="mnist_judge")
    errors, agree, right, latents = [], [], [], []
    for images, labels in batches(data(with_labels=True, held_out=10_000).data[1]):
        latents.append(codec.encode(images))
        again = codec.decode(latents[-1]).clamp(0, 1)
        evaluation.update(again)
        errors.append((again - images).square().flatten(1).mean(1))
        seen = judge(as_stored(again)).argmax(1)
        agree.append(seen == judge(images).argmax(1))
        right.append(seen == labels)
    figures = {
        "parameters": sum(p.numel() for p in codec.parameters()),
        "n": sum(map(len, right)),
        "latent_mean": torch.cat(latents).mean().item(),
        "latent_deviation": torch.cat(latents).std().item(),
        "mean_squared_error": torch.cat(errors).mean().item(),
        "judge_sees_the_same": torch.cat(agree).double().mean().item(),
        "judge_is_right": torch.cat(right).double().mean().item(),
        "fid_of_the_reconstructions": evaluation.compute()["metrics"]["fid"],
    }
    return cards.Card(
        name=target.name,
        summary="A small autoencoder between digits, (B, 1, 28, 28) in [0, 1], and latents (B, 4, 7, 7).",
        data=MNIST,
        data_licence=MNIST_LICENCE,
        command="lightning fit --config pretrain/mnist_autoencoder.yaml",
        training=json.loads((export / "training.json").read_text()),
        figures=figures,
        notes=[
            "Its shift and scaling factor were measured at the last validation; a new fit takes its last weights for "
            "that."
        ],
    )


@torch.no_grad()
def draw(denoiser: PretrainedDenoiser, labels: Tensor, batch_size: int = 250) -> Tensor:
    """Return the samples of seeds 0, 1, .., each asked for its label, `(N, 1, 28, 28)` in [0, 1]."""
    found = []
    for seeds in tracked(torch.arange(len(labels)).split(batch_size), f"{len(labels)} samples"):
        z = seeded_noise(seeds.tolist(), denoiser.sample_shape, SAMPLER, denoiser.noise_schedule)
        with torch.autocast("cpu", torch.bfloat16) if computes_in_bfloat16() else nullcontext():
            latents = SAMPLER(denoiser.predictor({"class_labels": labels[seeds]}), denoiser.noise_schedule, z)
        found.append(denoiser.codec.decode(latents).clamp(0, 1))
    return torch.cat(found)


def halve(weights: Path) -> None:
    """Rewrite a safetensors file in half precision: half the size; it is read back as float32."""
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    weights.chmod(0o644)


def flow(target: Path, export: Path, data: DataMaker, count: int = COUNT) -> cards.Card:
    """Copy an exported flow to `target`; measure, at several guidance scales, whether it draws what it is asked for."""
    PretrainedDenoiser(str(export))
    shutil.rmtree(target)
    shutil.copytree(export, target, ignore=shutil.ignore_patterns("training.json"))
    halve(target / "unet" / WEIGHTS)
    asked, found = torch.arange(count) % 10, {}
    for scale in SCALES:
        evaluation = AskedClassEvaluation(PretrainedClassifier("mnist_judge"), reference="mnist_judge")
        denoiser = PretrainedDenoiser(str(target), guidance_scale=scale)
        for images, labels in zip(draw(denoiser, asked).split(500), asked.split(500), strict=True):
            evaluation.update_asked(images, {"class_labels": labels})
        found[scale] = evaluation.compute()["metrics"]
    best = max(SCALES, key=lambda scale: found[scale]["agreement"])
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in denoiser.network.parameters()),
        "n": count,
        "steps": SAMPLER.steps,
        "best_guidance_scale": best,
        "judge_sees_what_was_asked": found[best]["agreement"],
        "fid": found[best]["fid"],
        "by_guidance_scale": {
            f"{scale:g}": {"agreement": row["agreement"], "fid": row["fid"], "non_digits": row["non_digit_rate"]}
            for scale, row in found.items()
        },
    }
    return cards.Card(
        name=target.name,
        summary="A small class-conditional flow in the latents of mnist_autoencoder: asked for a digit, it draws one.",
        data=MNIST,
        data_licence=MNIST_LICENCE,
        command="lightning fit --config pretrain/mnist_flow.yaml",
        training=json.loads((export / "training.json").read_text()),
        figures=figures,
        notes=[
            "EMA weights of the last step, in half precision. The label 10 stands for none: guidance leads from it."
        ],
    )
