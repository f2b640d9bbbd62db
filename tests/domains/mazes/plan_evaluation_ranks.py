"""Run by test_plan_evaluation.py as a program: one rank's figures and those of two gloo ranks, as JSON."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones
from constrained_diffusion.domains.mazes.plan_evaluation import PlanEvaluation
from constrained_diffusion.objectives import Constraint

SAMPLES = 21


class Discs(ForbiddenZones):
    """Two zones of several radii."""

    def __init__(self) -> None:
        Constraint.__init__(self)
        self.centres, self.radius = torch.tensor([[-2.0, 2.5], [-1.5, 2.0]]), torch.tensor([0.3, 0.2])

    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).sum(1)


def random_plans(count: int) -> Tensor:
    """Random walks of 5 tokens of 8 frames between a standing first and last one, from near the upper left cell."""
    random = torch.Generator().manual_seed(1)
    steps = torch.randn(count, 40, 2, generator=random).cumsum(1) * 0.01
    frames = torch.tensor([-2.5, 2.5]) + steps.cumsum(1)
    tokens = frames.unflatten(1, (5, 8))
    return torch.cat([frames[:, None, :1].expand(-1, 1, 8, -1), tokens, frames[:, None, -1:].expand(-1, 1, 8, -1)], 1)


def measure(folder: Path, executed: int, rank: int, world: int) -> str:
    """Return the figures of an evaluation whose local samples are those of one of the ranks, as JSON."""
    evaluation = PlanEvaluation("medium", str(folder), executed=executed, goal=[-2.5, 1.5])
    evaluation.bind([Discs()])
    samples = random_plans(SAMPLES)
    for rows in torch.arange(rank, SAMPLES, world).split(4):
        evaluation.update(samples[rows])
    return json.dumps(evaluation.compute())


def rank_main(rank: int, folder: Path, executed: int) -> None:
    """Measure every second sample, then all on the second rank and none on the first; write the figures to a file."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    lines = [measure(folder, executed, rank, 2), measure(folder, 0, 0 if rank else SAMPLES, 1)]
    (folder / f"{rank}.jsonl").write_text("\n".join(lines))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, count = Path(sys.argv[1]), int(sys.argv[2])
    (place / "statistics.json").write_text(json.dumps({"step_p999": 0.06}))
    # forked rather than spawned, which would import torch twice more; no thread has been started here
    torch.multiprocessing.start_processes(rank_main, (place, count), nprocs=2, start_method="fork")
    ranks = [[json.loads(line) for line in (place / f"{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]
    one = [json.loads(measure(place, executed, 0, 1)) for executed in (count, 0)]
    print(json.dumps({"one": one, "two": ranks}))
