"""Prompts x seeds: the jobs of noise optimisation, in one order and each with a name of its own."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from constrained_diffusion.noise_optimization.jobs import Job
from constrained_diffusion.runtime.data import Listed, Shard, as_is
from constrained_diffusion.runtime.prompt_file import Row, as_seeds, rows_of


class PromptsDataModule(LightningDataModule):
    """A list of prompts, each with the seeds that it is to be drawn with; for `predict` alone.

    The prompts are given, or read from a file with one JSON value per line: a string, or an object with `prompt` and
    perhaps `seed` (an integer) or `seeds` (a list of them). Other keys of an object and empty lines are passed over.

    Args:
        prompts: the prompts themselves.
        prompt_file: path of such a file, in their place.
        seeds: for prompts without seeds of their own: a list, or a number n that stands for 0, .., n - 1.
        batch_size: jobs per rank and batch.

    Attributes:
        jobs: all of them, in the order of the prompts and, for each prompt, of its seeds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are no prompts, or two sources of them; a line, a prompt or a seed is broken; a prompt comes
            twice with one seed.

    Example:
        >>> PromptsDataModule(["a white duck"], seeds=[3, 5]).jobs[1]
        Job(key='00000-5', prompt='a white duck', seed=5)
    """

    sharded = True  #: whether ranks share the jobs, or all see all of them

    def __init__(
        self,
        prompts: list[str] | None = None,
        prompt_file: str | None = None,
        seeds: list[int] | int = 1,
        batch_size: int = 1,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"PromptsDataModule expects batch_size >= 1, got {batch_size}.")
        self.batch_size = batch_size
        shared = as_seeds(list(range(seeds)) if isinstance(seeds, int) else seeds, "seeds")
        rows = rows_of(prompts, prompt_file, shared)
        self.jobs = _jobs(rows)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of the jobs, lists of `Job`; each job is on exactly one rank unless all ranks see all."""
        sampler = Shard(len(self.jobs), self.sharded)
        return DataLoader(Listed(self.jobs), batch_size=self.batch_size, sampler=sampler, collate_fn=as_is)


def _jobs(rows: list[Row]) -> list[Job]:
    jobs: list[Job] = []
    places: dict[tuple[str, int], str] = {}
    for index, (prompt, seeds, place) in enumerate(rows):
        for seed in seeds:
            if (prompt, seed) in places:
                raise ValueError(
                    f"the prompt {prompt[:80]!r} comes twice with seed {seed} ({places[prompt, seed]}, and {place}): "
                    "expected each pair once; take one out, or give it another seed."
                )
            places[prompt, seed] = place
            jobs.append(Job(f"{index:05d}-{seed}", prompt, seed))
    return jobs
