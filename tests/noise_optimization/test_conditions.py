"""Noise optimisation of a class-conditional latent flow: what is asked for travels with each seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from constrained_diffusion import DirectNoiseOptimization, PretrainedDenoiser
from constrained_diffusion.datamodules import SeedsDataModule
from constrained_diffusion.diffusion.sampler import Sampler, sample
from constrained_diffusion.domains.images import Brightness
from constrained_diffusion.noise_optimization.optimizer import Record
from constrained_diffusion.runtime.conditions import Labels


@pytest.fixture(scope="module")
def flow() -> PretrainedDenoiser:
    return PretrainedDenoiser("mnist_flow", guidance_scale=1.5)


def test_each_seed_is_optimised_for_what_it_is_asked_for(flow: PretrainedDenoiser, tmp_path: Path) -> None:
    module = DirectNoiseOptimization(flow, Brightness(), Sampler(4, eta=1.0), steps=2)
    data = SeedsDataModule(predict_samples=3, eval_batch_size=2, conditions=Labels([3, 7]))
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", default_root_dir=tmp_path)
    batches = trainer.predict(module, datamodule=data)
    assert batches is not None
    records: list[Record] = [record for batch in batches for record in batch.records]  # type: ignore[union-attr]
    assert len(records) == 3
    for seed, (record, label) in enumerate(zip(records, (3, 7, 3), strict=True)):
        told = {"class_labels": torch.tensor([label])}
        with torch.no_grad():
            z = module.noise([seed])
            drawn = flow.codec.decode(sample(flow.predictor(told), flow.noise_schedule, z, module.sampler))
        assert record.rewards[0] == pytest.approx(float(drawn.mean()), abs=1e-4)
        assert len(record.rewards) == 3
