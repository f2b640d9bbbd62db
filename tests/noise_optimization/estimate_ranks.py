"""Run by test_gradients.py as a program, `estimate_ranks.py FOLDER`: sharded estimates of two gloo ranks and of one."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from constrained_diffusion.noise_optimization.gradients import ZOSGD, Hybrid1, Hybrid2
from constrained_diffusion.noise_optimization.problem import Problem

PERTURBATIONS = 5  # odd: the ranks have unequal shares


def estimates(off: float = 0.0) -> dict[str, list[Tensor]]:
    """Return reward and gradient by each estimator, its perturbations split over the ranks where there are several.

    Args:
        off: of a rank's own samples.
    """
    matrix, noise = (torch.randn(3, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    problem = Problem(
        lambda z, _: (z @ matrix.T).sin() * (1 + off), lambda x, _: -x.square().sum(1), [None] * 3, [(0,), (1,), (2,)]
    )
    return {
        cls.__name__: list(cls(PERTURBATIONS, mu=0.3, batch_size=3, shard=True)(problem, noise)[1:])
        for cls in (ZOSGD, Hybrid1, Hybrid2)
    }


def rank_main(rank: int, folder: Path) -> None:
    """Estimate as one rank of two and write what was found to a file."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=4)
    )
    torch.save(estimates(), folder / f"{rank}.pt")
    torch.save(estimates(off=rank / 1000), folder / f"off-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    # forked rather than spawned, which would import torch twice more; no thread has been started here
    torch.multiprocessing.start_processes(rank_main, (place,), nprocs=2, start_method="fork")
