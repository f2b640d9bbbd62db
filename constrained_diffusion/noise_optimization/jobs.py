"""The samples that a noise optimisation draws, each with a name of its own, and what each is drawn for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from constrained_diffusion.batch import Seeds
from constrained_diffusion.condition import Condition, join, moved, take
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.calls import names_of
from constrained_diffusion.runtime.conditions import Prompts, asked


class Job(NamedTuple):
    """One sample to draw."""

    key: str  #: names it, and its files: the prompt's place in the list and the seed, as in "00002-7"
    prompt: str | None  #: None for models that take none, and where the data module's condition is not of prompts
    seed: int


def as_jobs(batch: Any, data: Any = None) -> list[Job]:
    """Return the jobs of a batch: as they are, or one per seed, with the prompt that `data` asks for."""
    if not isinstance(batch, Seeds):
        return list(batch)
    seeds, conditions = batch.seeds.tolist(), getattr(data, "conditions", None)
    prompts = conditions.names(seeds) if isinstance(conditions, Prompts) else [None] * len(seeds)
    return [Job(f"seed-{seed:06d}", prompt, seed) for seed, prompt in zip(seeds, prompts, strict=True)]


def asked_of_two(model: Denoiser, data: Any) -> Condition | None:
    """Return a condition of two samples such as `data` asks for, to try the model with; None where it takes none.

    Raises:
        TypeError: prompts are asked for, but the model takes none.
        ValueError: nothing is asked for, but the model needs it.
    """
    told = asked(data, [0, 1])
    if told is not None:
        return told
    if model.has_prompts:
        if hasattr(data, "condition"):  # it gives seeds without prompts
            raise _without_prompts(type(data).__name__)
        return model.encode(["", ""])
    names = names_of(model.network)
    if names.needed:
        raise ValueError(
            f"{type(model.network).__name__} needs {', '.join(sorted(names.needed))}, which "
            f"{'nobody gives' if data is None else f'{type(data).__name__} does not give'}: expected a condition for "
            f"each seed; take SeedsDataModule and set its `conditions` {names.hint}."
        )
    return None


def contexts_of(model: Denoiser, data: Any, jobs: Sequence[Job]) -> list[Any]:
    """Return for each job its prompt, or else what the data module asks of its seed, one row, or None.

    Raises:
        ValueError: the model takes prompts, and a job has neither.
    """
    lacking = [not model.has_prompts or job.prompt is None for job in jobs]
    told = asked(data, [job.seed for job in jobs]) if any(lacking) else None
    if told is None:
        if model.has_prompts and any(lacking):
            raise _without_prompts(f"the job {jobs[lacking.index(True)].key}")
        return [job.prompt for job in jobs]
    return [take(told, [row]) if lacks else jobs[row].prompt for row, lacks in enumerate(lacking)]


def condition_of(model: Denoiser, contexts: Sequence[Any], device: torch.device) -> Condition | None:
    """Return the condition of the rows with these `contexts`; None for prompts that the model does not take."""
    if not any(isinstance(context, Mapping) for context in contexts):
        return moved(model.encode(contexts), device) if model.has_prompts else None
    rows = [context if isinstance(context, Mapping) else model.encode([context]) for context in contexts]
    return join([moved(row, device) or {} for row in rows])


def _without_prompts(who: str) -> ValueError:
    return ValueError(
        f"the model takes prompts, but {who} has none: expected PromptsDataModule, or SeedsDataModule with "
        "`conditions` set to Prompts; choose one of them."
    )
