"""Mutates files of all kinds that the package reads, and reads them: `python tests/fuzz.py --seed 0 --rounds 200`.

A mutated file is either still valid, or refused with one sentence. Anything else is a failure: another exception, code
that ran, or a file that appeared. Round i of a kind depends on the seed, the kind and i alone:
`--kind prompts --first 17 --rounds 1` repeats one. Exit status 1 where anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from PIL import Image

from constrained_diffusion.callbacks.run.continue_log import rows
from constrained_diffusion.cli import command, config_errors, runs
from constrained_diffusion.datamodules import ImageFolderDataModule, MNISTDataModule, PromptsDataModule
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.config import denoiser_config
from constrained_diffusion.denoisers.export import export
from constrained_diffusion.denoisers.loading import PretrainedDenoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.domains.images.classifiers import DigitCNN, load_classifier
from constrained_diffusion.reports.noise_rows import read_results, summary
from constrained_diffusion.reports.run_report import read_metrics
from constrained_diffusion.runtime import assets, cards
from constrained_diffusion.runtime.stored_networks import save_network

DOCUMENTED = (ValueError, TypeError, FileNotFoundError)
MARK = "executed"
TOKENS = [
    b"99999999999999999999", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"', b"'", b",", b"\n", b"\0", b"\xff",
    b"../../x", b"/etc/passwd", b"\\ud800", b"[" * 2000, b"&a ", b"*a", b"9" * 5000, b"true", b": ", b"- ",
    f"!!python/object/apply:os.system ['touch {MARK}']".encode(), struct.pack("<Q", 2**62), b"\xff" * 8,
]  # fmt: skip


class Kind(NamedTuple):
    """A kind of file: the one that is mutated, and what reads it."""

    file: Path
    read: Callable[[], Any]
    mutate: Callable[[bytes, random.Random], bytes]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the bytes after one to three changes."""
    for _ in range(chance.randint(1, 3)):
        a, b = sorted(chance.randint(0, len(content)) for _ in range(2))
        b = min(b, a + chance.choice([1, 8, 1000]))
        kind = chance.randrange(6)
        if kind == 0:
            content = content[:a]
        elif kind == 1:
            content = content[:a] + chance.choice(TOKENS) + content[a:]
        elif kind == 2:
            content = content[:a] + chance.choice(TOKENS) + content[b:]
        elif kind == 3:
            content = content[:b] + content[a:]
        elif kind == 4:
            content = content[:a] + content[b:]
        elif content:
            flipped = bytearray(content)
            for _ in range(chance.choice([1, 4])):
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            content = bytes(flipped)
    return content


def mutated_entry(content: bytes, chance: random.Random) -> bytes:
    """Return a checkpoint whose pickle is mutated and whose checksums are right."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        for entry in old.infolist():
            held = old.read(entry)
            new.writestr(entry.filename, mutated(held, chance) if entry.filename.endswith("data.pkl") else held)
    return written.getvalue()


def small_denoiser() -> Denoiser:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    size = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, "add_attention": False}
    network = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **size, **blocks)
    return Denoiser(network, DiffusersSchedule({"num_train_timesteps": 50}))


class Convolution(torch.nn.Module):
    """A network that is not diffusers', so that it is exported as one safetensors file."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)


def kinds(top: Path) -> dict[str, Kind]:
    """Write a valid file of every kind below `top`."""
    denoiser, found = small_denoiser(), {}

    def add(name: str, file: Path, read: Callable[[], Any], mutate: Any = mutated) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        found[name] = Kind(file, read, mutate)

    state = {f"networks.ema.{key}": value for key, value in denoiser.network.state_dict().items()}
    checkpoint = {"state_dict": state, "denoiser": denoiser_config(denoiser), "global_step": 3}
    for name, mutate, settings in (
        ("checkpoint", mutated, {}),
        ("checkpoint, its pickle", mutated_entry, {}),
        ("checkpoint, before 2020", mutated, {"_use_new_zipfile_serialization": False}),
    ):
        file = top / f"{name}.ckpt"
        torch.save(checkpoint, file, **settings)

        def read(file: Path = file) -> None:
            runs.check_checkpoint(str(file))
            PretrainedDenoiser(str(file))

        add(name, file, read, mutate)

    for name in ("unet/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json",
                 "scheduler/scheduler_config.json", "constrained_diffusion.json"):  # fmt: skip
        folder = export(denoiser, top / name.replace("/", " of "))
        add(f"export, {name}", folder / name, lambda folder=folder: PretrainedDenoiser(str(folder)))
    for name in ("model.safetensors", "constrained_diffusion.json"):
        plain = Denoiser(Convolution(), denoiser.noise_schedule, sample_shape=(1, 8, 8))
        folder = export(plain, top / f"foreign {name}")
        add(
            f"foreign network, {name}",
            folder / name,
            lambda folder=folder: PretrainedDenoiser(str(folder), network=Convolution()),
        )
    for name in ("config.json", "model.safetensors"):
        save_network(DigitCNN(width=2), top / f"classifier {name}")
        add(
            f"classifier, {name}",
            top / f"classifier {name}" / name,
            lambda n=name: load_classifier(top / f"classifier {n}"),
        )

    config = top / "config.yaml"
    config.write_bytes((runs.shipped_configs() / "mnist.yaml").read_bytes())
    add("config", config, lambda: command_line("fit", "--config", str(config), "--print_config"))

    prompts = top / "prompts.jsonl"
    prompts.write_text('{"prompt": "a white duck", "seed": 7}\n"a black cat"\n{"prompt": "Katze", "seeds": [2, 0]}\n')
    add("prompts", prompts, lambda: PromptsDataModule(prompt_file=str(prompts)))

    log = top / "metrics.csv"
    log.write_text("epoch,loss,step,val/fid\n0,0.5,3,\n0,,,7.25\n1,0.25,7,\n1,0.125,9,\n")
    add("metrics.csv", log, lambda: (read_metrics(log), rows(log.read_text("utf-8", "replace"), log)))

    results = top / "results" / "results.jsonl"
    row = {
        "reward_before": 0.5,
        "reward": 1.0,
        "probability_before": 1.0,
        "probability": 0.5,
        "best_step": 1,
        "steps": 1,
    }
    row |= {"rewards": [0.5, 1.0], "log_probabilities": [0.0, -0.7], "seed": 0, "prompt": None, "stopped": "steps"}
    add("results.jsonl", results, lambda: summary(read_results(results.parent)))
    results.write_text("".join(json.dumps({"key": f"0000{i}-0", **row}) + "\n" for i in range(3)))

    card = top / "card" / cards.CARD
    add("card.json", card, lambda: (cards.read(card.parent), cards.mismatches(card.parent)))
    card.write_bytes((assets.path("mnist_classifier") / cards.CARD).read_bytes())

    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "webp"):
        folder = top / suffix
        add(
            f"picture, {suffix}", folder / f"0.{suffix}", lambda f=folder: ImageFolderDataModule(str(f), size=8).build()
        )
        for i in range(2):
            Image.fromarray(pixels).save(folder / f"{i}.{suffix}")

    raw = top / "data" / "MNIST" / "raw"
    digits = MNISTDataModule(str(top / "data"), with_labels=True, held_out=2)
    add("MNIST, images", raw / "train-images-idx3-ubyte", digits.build)
    add("MNIST, labels", raw / "train-labels-idx1-ubyte", digits.build)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 4, 28, 28) + bytes(4 * 784))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 4) + bytes(4))
    return found


def command_line(*words: str) -> None:
    """Run the command line; a refusal becomes a ValueError with what it said."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            command.main(list(words))
    except SystemExit as stop:
        if stop.code:
            if stop.code != 2:
                raise AssertionError(f"exit status {stop.code}") from stop
            raise ValueError(said.getvalue().splitlines()[-1].removeprefix("error: ")) from stop


def judged(kind: Kind) -> str:
    """Return "accepted" or "refused"; what else happens is raised."""
    try:
        kind.read()
    except DOCUMENTED as error:
        if not config_errors.summarize(str(error)):
            raise AssertionError(f"an empty {type(error).__name__}") from error
        return "refused"
    return "accepted"


def tried(
    name: str, kind: Kind, seed: int, numbers: range, files: set[Path], top: Path
) -> tuple[dict[str, int], list[str]]:
    counts, failures = {"accepted": 0, "refused": 0}, []
    valid = kind.file.read_bytes()
    assert judged(kind) == "accepted", f"{name}: the file is not valid before it is mutated"
    for number in numbers:
        kind.file.write_bytes(kind.mutate(valid, random.Random(f"{seed}/{name}/{number}")))
        try:
            counts[judged(kind)] += 1
        except Exception as error:
            failures.append(f"{name}, round {number}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if appeared := {path for path in top.rglob("*") if path.is_file()} - files:
            failures.append(f"{name}, round {number}: {', '.join(map(str, appeared))} appeared")
            for path in appeared:
                path.unlink()
    kind.file.write_bytes(valid)
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=200, help="per kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--kind", default="", help="only kinds whose name begins so")
    parser.add_argument("--memory", type=int, default=16, help="GiB of address space that reading may take")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (given.memory << 30, given.memory << 30))
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity(60)
    failures: list[str] = []
    print(f"seed {given.seed}\n\n| kind | rounds | accepted | refused in a sentence | anything else |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)  # where a command line would write
        top = Path(place)
        made = kinds(top)
        files = {path for path in top.rglob("*") if path.is_file()}
        for name, kind in made.items():
            if not name.startswith(given.kind):
                continue
            numbers = range(given.first, given.first + given.rounds)
            counts, wrong = tried(name, kind, given.seed, numbers, files, top)
            failures += wrong
            cells = (name, given.rounds, counts["accepted"], counts["refused"], len(wrong))
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
        os.chdir("/")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{len(failures)} failures with seed {given.seed}; at most {peak:.1f} GiB of memory taken")
    print("\n".join(failures[:50]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
