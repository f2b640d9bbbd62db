"""Run by test_classes.py as a program: one rank's figures and those of two gloo ranks, as JSON on standard output."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from constrained_diffusion.domains.images.class_evaluation import ClassEvaluation
from constrained_diffusion.domains.images.features import ReferenceFeatures

SAMPLES = 21
SPLITS = (13, SAMPLES)  # samples of the first rank: most of them, then all


class TinyJudge(nn.Module):
    """A random network with features."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh()), nn.Linear(6, 4)

    def features(self, images: Tensor) -> Tensor:
        output: Tensor = self.body(images)
        return output

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.head(4 * self.features(images))
        return output


def measure(folder: Path, first: int, last: int) -> str:
    """Return the figures of an evaluation whose local samples are `first` to `last`, as JSON."""
    samples = torch.rand(SAMPLES, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    evaluation = ClassEvaluation(TinyJudge(), str(folder / "reference.safetensors"), label=2)
    for rows in torch.arange(first, last).split(5):
        evaluation.update(samples[rows])
    return json.dumps(evaluation.compute())


def rank_main(rank: int, folder: Path) -> None:
    """Measure each split's share of one rank and write the figures to a file."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    shares = [(0, split) if rank == 0 else (split, SAMPLES) for split in SPLITS]
    (folder / f"{rank}.jsonl").write_text("\n".join(measure(folder, *share) for share in shares))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    images = torch.rand(80, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    ReferenceFeatures.measure(TinyJudge().features, [(images, torch.arange(80) % 4)], 4, keep=20).save(
        place / "reference.safetensors"
    )
    # forked rather than spawned, which would import torch twice more; no thread has been started here
    torch.multiprocessing.start_processes(rank_main, (place,), nprocs=2, start_method="fork")
    ranks = [[json.loads(line) for line in (place / f"{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]
    print(json.dumps({"one": json.loads(measure(place, 0, SAMPLES)), "two": ranks}))
