"""Erase digits from the class-conditional latent flow, and measure what is drawn where each digit is asked for.

    python benchmarks/erase_digits.py [--labels 4 2 7] [--n 2000] [--others 300] [--first_seed 5000000] [--mixed]

Everything is the shipped config but for `label`; the samples are of seeds that no trial used. It writes
`erase_digits.json` into the runs' folder and prints a table from it. "Asked for it" is by n samples that were asked for
the erased digit, "the others" by `others` samples of each of the other nine. A star marks a missed limit.
"""

from __future__ import annotations

import argparse
import json
import platform
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from commands import fit_and_test
from rich.progress import track
from torch import Tensor

from constrained_diffusion import PretrainedDenoiser, Sampler
from constrained_diffusion.cli.runs import find_config
from constrained_diffusion.diffusion.sampler import seeded_noise
from constrained_diffusion.domains.images import PretrainedClassifier
from constrained_diffusion.domains.images.class_evaluation import as_stored
from constrained_diffusion.domains.images.features import ReferenceFeatures, frechet_distance
from constrained_diffusion.runtime import assets
from constrained_diffusion.runtime.cpu_precision import computes_in_bfloat16
from constrained_diffusion.statistics import clopper_pearson_upper

FIRST_SEED = 5_000_000  #: evaluation uses seeds 0, 1, .., training sets 1,000,000, ..
COLUMNS = (
    "label", "asked for it: judge sees it", "upper 95 %", "judge sure (before)", "drawn instead, 0 .. 9",
    "others: judge agrees (before)", "largest FID ratio of a digit", "status", "fit s",
)  # fmt: skip


@torch.no_grad()
def draw(denoiser: PretrainedDenoiser, labels: Tensor, first: int, sampler: Sampler) -> Tensor:
    """Return the samples of seeds `first`, `first` + 1, .., each asked for its label, as 8-bit files hold them."""
    found = []
    for rows in track(torch.arange(len(labels)).split(250), description=f"{len(labels)} samples"):
        z = seeded_noise((rows + first).tolist(), denoiser.sample_shape, sampler, denoiser.noise_schedule)
        with torch.autocast("cpu", torch.bfloat16) if computes_in_bfloat16() else nullcontext():
            latents = sampler(denoiser.predictor({"class_labels": labels[rows]}), denoiser.noise_schedule, z)
        found.append(as_stored(denoiser.codec.decode(latents.float())))
    return torch.cat(found)


@torch.no_grad()
def judged(judge: PretrainedClassifier, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the classes that the judge sees, how sure it is, and its features."""
    parts = [(judge(part).softmax(1).max(1), judge.features(part)) for part in images.split(500)]
    return (
        torch.cat([top.indices for top, _ in parts]),
        torch.cat([top.values for top, _ in parts]),
        torch.cat([features for _, features in parts]).double(),
    )


def measure(
    denoiser: PretrainedDenoiser, label: int, n: int, others: int, sampler: Sampler, first: int = FIRST_SEED
) -> dict[str, Any]:
    """Return what is drawn where `label` is asked for (`n` samples), and where each other digit is (`others` each)."""
    judge = PretrainedClassifier("mnist_judge")
    reference = ReferenceFeatures.from_file(assets.path("mnist_judge") / "reference.safetensors")
    seen, sure, _ = judged(judge, draw(denoiser, torch.full((n,), label), first, sampler))
    rest = [digit for digit in range(10) if digit != label]
    asked = torch.tensor(rest).repeat_interleave(others)
    found, _, features = judged(judge, draw(denoiser, asked, first + n, sampler))
    fids = {}
    for digit in rest:
        real, own = reference.only(digit), features[asked == digit]
        fids[str(digit)] = frechet_distance(own.mean(0), own.T.cov(), real.mean, real.covariance)
    hits = int((seen == label).sum())
    return {
        "first_seed": first, "asked": n, "seen": hits, "rate": hits / n, "upper_95": clopper_pearson_upper(hits, n),
        "sure": (sure >= 0.5).double().mean().item(), "drawn": torch.bincount(seen, minlength=10).tolist(),
        "others": len(asked), "agreement": (found == asked).double().mean().item(), "fid": fids,
    }  # fmt: skip


def row(entry: dict[str, Any]) -> list[str]:
    """Return one line of the table."""
    before, after = entry["before"], entry["after"]
    ratio = max(after["fid"][digit] / before["fid"][digit] for digit in after["fid"])

    def mark(text: str, held: bool) -> str:
        return text if held else text + "*"

    return [
        str(entry["label"]),
        mark(f"{after['rate']:.2%}", after["rate"] <= 0.005),
        mark(f"{after['upper_95']:.2%}", after["upper_95"] <= 0.01),
        mark(f"{after['sure']:.1%} ({before['sure']:.1%})", after["sure"] >= before["sure"] - 0.02),
        " ".join(map(str, after["drawn"])),
        mark(f"{after['agreement']:.2%} ({before['agreement']:.2%})", after["agreement"] >= before["agreement"] - 0.01),
        mark(f"{ratio:.2f}", ratio <= 1.1),
        entry["status"],
        mark(f"{entry['seconds']:.0f}", entry["seconds"] <= 360),
    ]


def main() -> None:
    """Fit, test and measure the labels one after the other; print the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="*", default=[4, 2, 7])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--others", type=int, default=300)
    parser.add_argument("--mixed", action="store_true", help="stand-ins from all other digits")
    parser.add_argument("--first_seed", type=int, default=FIRST_SEED)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    given = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n" + "|" + "---|" * len(COLUMNS))
    entries = []
    for label in given.labels:
        config = yaml.safe_load(find_config("erase_digit.yaml").read_text())
        config["data"]["init_args"]["mixed_stand_ins"] = given.mixed
        own = config["model"]["init_args"]
        own["constraints"]["init_args"]["label"] = label
        scale, sampler = own["denoiser"]["init_args"]["guidance_scale"], Sampler(**own["sampler"])
        results = fit_and_test(config, f"erase_{label}", given.runs.absolute())
        export = given.runs.absolute() / f"erase_{label}" / "latest" / "export"
        models = {"before": PretrainedDenoiser("mnist_flow", guidance_scale=scale)}
        models["after"] = PretrainedDenoiser(str(export), guidance_scale=scale)
        entry: dict[str, Any] = {"label": label, "status": results["status"], "seconds": results["command_seconds"]}
        figures = label, given.n, given.others, sampler, given.first_seed
        entry |= {side: measure(model, *figures) for side, model in models.items()}
        entries.append({**entry, "machine": platform.processor(), "bfloat16": computes_in_bfloat16()})
        (given.runs / "erase_digits.json").write_text(json.dumps(entries, indent=2) + "\n")
        print("| " + " | ".join(row(entry)) + " |", flush=True)


if __name__ == "__main__":
    main()
