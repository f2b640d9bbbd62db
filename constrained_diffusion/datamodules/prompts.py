"""Prompts x seeds: the jobs of noise optimisation, in one order and each with a name of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from constrained_diffusion.noise_optimization.jobs import Job
from constrained_diffusion.runtime.data import Shard, as_is

_EXPECTED = 'a JSON string, or an object like {"prompt": "a white duck", "seeds": [0, 1]}'


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
        if (prompts is None) == (prompt_file is None):
            raise ValueError(
                f"expected either prompts or prompt_file, got {'neither' if prompts is None else 'both'}; give prompts "
                "as a list, or the path of a file with one JSON value per line."
            )
        if batch_size < 1:
            raise ValueError(f"PromptsDataModule expects batch_size >= 1, got {batch_size}.")
        self.batch_size = batch_size
        shared = _seeds(list(range(seeds)) if isinstance(seeds, int) else seeds, "seeds")
        if prompt_file is None:
            rows = [_row(prompt, f"prompts[{i}]", shared) for i, prompt in enumerate(prompts or [])]
        else:
            rows = [_row(value, place, shared) for place, value in _lines(Path(prompt_file).expanduser())]
        if not rows:
            raise ValueError(f"there is no prompt in {prompt_file or 'prompts'}: expected at least one.")
        self.jobs = _jobs(rows)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # where there are fewer jobs than ranks

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of the jobs, lists of `Job`; each job is on exactly one rank unless all ranks see all."""
        jobs: Any = self.jobs
        return DataLoader(jobs, batch_size=self.batch_size, sampler=Shard(len(jobs), self.sharded), collate_fn=as_is)


class _Row(NamedTuple):
    prompt: str
    seeds: list[int]
    place: str


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each value of the file stands, and the value."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no prompt file '{path}': expected a file with {_EXPECTED} per line.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # `splitlines` would cut at U+2028 too
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file '{path}' is no UTF-8 text ({error}); save it as such.") from error
    for number, line in enumerate(lines, 1):
        place = f"{path}, line {number}"
        if line.strip():
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError) as error:
                said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise ValueError(f"{place}: expected {_EXPECTED}, got {line.strip()[:80]!r} ({said}).") from error


def _row(value: Any, place: str, shared: list[int]) -> _Row:
    fields = value if isinstance(value, dict) else {"prompt": value}
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip() or {"seed", "seeds"} <= fields.keys():
        raise ValueError(f"{place}: expected {_EXPECTED}, got {str(value)[:80]!r}.")
    if not prompt.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in prompt):  # no tokenizer takes it
        raise ValueError(f"{place}: the prompt {prompt[:80]!r} holds half of a letter, perhaps cut; write it again.")
    if "seed" in fields:
        return _Row(prompt, _seeds([fields["seed"]], place), place)
    return _Row(prompt, _seeds(fields["seeds"], place) if "seeds" in fields else shared, place)


def _seeds(seeds: Any, place: str) -> list[int]:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        got = str(seeds)[:80]
        raise ValueError(f"{place}: expected seeds as a list of integers >= 0, at least one, got {got}.")
    if max(seeds) >= 2**63:  # it names files too
        raise ValueError(f"{place}: expected seeds below 2^63, got one of {len(str(max(seeds)))} digits.")
    return seeds


def _jobs(rows: list[_Row]) -> list[Job]:
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
