"""What the jobs of a noise optimisation are drawn for: prompts of their own, or what the data module asks of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion.batch import Seeds
from constrained_diffusion.datamodules import PromptsDataModule, SeedsDataModule
from constrained_diffusion.denoisers import Denoiser
from constrained_diffusion.diffusion.variance_preserving import VariancePreserving
from constrained_diffusion.noise_optimization.jobs import Job, as_jobs, asked_of_two, condition_of, contexts_of
from constrained_diffusion.runtime.conditions import Conditions, Labels, Prompts

CPU = torch.device("cpu")


class Told(nn.Module):
    def forward(self, noisy: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        return noisy + class_labels.view(-1, 1)


class Prompted(Denoiser):
    """A model of prompts, each of which is encoded as its length."""

    has_prompts = True

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"class_labels": torch.tensor([len(prompt) for prompt in prompts])}


class Lengths(Conditions):
    """Conditions of a user's own: place i is asked for as a prompt of i letters."""

    def of(self, places: Sequence[int], denoiser: Any) -> dict[str, Tensor]:
        return {"class_labels": torch.tensor(list(places))}

    def names(self, places: Sequence[int]) -> list[str]:
        return [str(place) for place in places]


def make(cls: type[Denoiser]) -> Denoiser:
    return cls(Told(), VariancePreserving([0.9, 0.5]), sample_shape=(2,))


def labels_of(model: Denoiser, data: Any, jobs: Sequence[Job]) -> list[int] | None:
    condition = condition_of(model, contexts_of(model, data, jobs), CPU)
    return None if condition is None else condition["class_labels"].tolist()


def test_seeds_have_the_prompts_that_the_data_module_asks_for() -> None:
    data = SeedsDataModule(conditions=Prompts(["duck", "ox"]))
    jobs = as_jobs(Seeds(torch.tensor([0, 3, 4])), data)
    assert [job.prompt for job in jobs] == ["duck", "ox", "duck"]
    assert labels_of(make(Prompted), data, jobs) == [4, 2, 4]
    assert [job.prompt for job in as_jobs(Seeds(torch.tensor([0])), SeedsDataModule(conditions=Labels(3)))] == [None]


def test_jobs_without_a_prompt_of_their_own_take_what_is_asked_of_their_seeds() -> None:
    data, jobs = SeedsDataModule(conditions=Lengths()), [Job("a", "duck", 7), Job("b", None, 9)]
    assert labels_of(make(Prompted), data, jobs) == [4, 9]
    assert labels_of(make(Prompted), None, jobs[:1]) == [4]
    assert labels_of(make(Denoiser), data, jobs) == [7, 9]
    assert labels_of(make(Denoiser), None, jobs) is None


def test_a_model_of_prompts_needs_some() -> None:
    for said, call in (
        ("SeedsDataModule has none", lambda: asked_of_two(make(Prompted), SeedsDataModule())),
        ("the job b has none", lambda: contexts_of(make(Prompted), None, [Job("a", "x", 0), Job("b", None, 1)])),
    ):
        with pytest.raises(
            ValueError, match=f"{said}: expected PromptsDataModule, or SeedsDataModule with `conditions`"
        ):
            call()
    assert asked_of_two(make(Prompted), PromptsDataModule(["duck"])) is not None
    assert asked_of_two(make(Prompted), None) is not None  # loaders may be given without a data module


def test_a_model_of_labels_needs_a_data_module_that_has_them() -> None:
    told = "Told needs class_labels, which PromptsDataModule does not give: .* take SeedsDataModule .* to Labels"
    with pytest.raises(ValueError, match=told):
        asked_of_two(make(Denoiser), PromptsDataModule(["duck"]))
    assert asked_of_two(make(Denoiser), SeedsDataModule(conditions=Labels(3))) is not None
