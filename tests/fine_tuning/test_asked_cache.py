"""The set that a fit draws from its own model is drawn again where anything is asked for otherwise."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from constrained_diffusion.datamodules import GeneratedDataModule
from constrained_diffusion.diffusion.codec import Codec
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.runtime.conditions import Conditions, Labels

SGD, SAMPLER = partial(torch.optim.SGD, lr=0.1), Sampler(steps=3)


class Weighted(Codec):
    """Pixels times a weight of its own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.settings, self.factor = {}, nn.Parameter(torch.tensor(factor), requires_grad=False)

    def encode(self, data: Tensor) -> Tensor:
        return data * self.factor

    def decode(self, encoded: Tensor) -> Tensor:
        return encoded / self.factor


def test_another_guidance_label_or_autoencoder_never_meets_old_samples(
    told_denoiser: Any, too_bright: Any, fit: Any, tmp_path: Any
) -> None:
    files = set()
    for scale, labels, factor in ((1.0, [0, 1], 1.0), (2.0, [0, 1], 1.0), (2.0, [1, 2], 1.0), (2.0, [1, 2], 2.0)):
        denoiser = told_denoiser(scale)
        denoiser.codec = Weighted(factor)
        data = GeneratedDataModule(4, 2, SAMPLER, conditions=Labels(labels), cache_dir=str(tmp_path), batch_size=2)
        fit(ConstrainedDiffusion(denoiser, too_bright(), sampler=SAMPLER, optimizer=SGD), data, max_steps=0)
        files.add(data.cache_file())
    assert len(files) == 4


class Listed(Conditions):
    """A label for each of six seeds from 1,000,000 on; it says nothing of itself."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def of(self, places: Any, denoiser: Any) -> dict[str, Tensor]:
        return {"class_labels": torch.tensor([self.labels[place % 1_000_000 % 6] for place in places])}

    def names(self, places: Any) -> list[str]:
        return [str(place) for place in places]


def test_the_cache_knows_what_each_sample_was_asked_for(
    told_denoiser: Any, too_bright: Any, fit: Any, tmp_path: Any
) -> None:
    def drawn_for(labels: list[int]) -> Any:
        data = GeneratedDataModule(4, 2, SAMPLER, conditions=Listed(labels), cache_dir=str(tmp_path), batch_size=2)
        module = ConstrainedDiffusion(told_denoiser(), too_bright(), sampler=SAMPLER, optimizer=SGD)
        fit(module, data, max_steps=0)
        return data.cache_file()

    first = [0, 1, 2, 0, 1, 2]
    others = [[(label + (place == changed)) % 3 for place, label in enumerate(first)] for changed in range(6)]
    assert drawn_for(first) == drawn_for(list(first))
    assert len({drawn_for(labels) for labels in [first, *others]}) == 7
