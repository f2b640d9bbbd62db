"""Noise optimisation with the network in half precision: z, P(z) and the regulariser stay in single precision."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from constrained_diffusion.datamodules import SeedsDataModule
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.noise_optimization.module import DirectNoiseOptimization
from constrained_diffusion.noise_optimization.optimizer import NoiseOptimizer
from constrained_diffusion.noise_optimization.record import Record
from constrained_diffusion.noise_optimization.regularizers import PRNO
from constrained_diffusion.objectives import Reward

STEPS = 6
# Half of what two neighbouring numbers differ by, relative to them; float32's 2**-24 less what sums lose.
ROUNDOFF = {"bf16-mixed": 2**-8, "bf16-true": 2**-8, "16-mixed": 2**-11, "16-true": 2**-11, "64-true": 2**-20}
# Lightning's own "16-mixed" means bfloat16 on a CPU.
HALF_MIXED = partial(MixedPrecision, "16-mixed", "cpu", torch.amp.GradScaler("cpu", enabled=False))


class Bright(Reward):
    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1)


class Noted(PRNO):
    """Notes the precision that it works in."""

    def __init__(self) -> None:
        super().__init__(weight=0.1)
        self.seen: set[torch.dtype] = set()

    def __call__(self, noise: Tensor, bounds: Tensor) -> Tensor:
        result = super().__call__(noise, bounds)
        self.seen |= {
            noise.dtype,
            bounds.dtype,
            result.dtype,
            (noise @ noise.T).dtype,
        }  # autocast would round a product
        return result


@pytest.fixture(scope="module")
def aligned(tiny_denoiser: Any) -> Any:
    """`aligned(precision)`: the records of four seeds, and the regulariser."""

    def run(precision: str) -> tuple[list[Record], Noted]:
        regularizer = Noted()
        module = DirectNoiseOptimization(
            tiny_denoiser(), Bright(), Sampler(steps=3, eta=1.0), steps=STEPS, permutations=5, regularizer=regularizer,
            optimizer=partial(torch.optim.SGD, lr=2.0),
        )  # fmt: skip
        precise: Any = {"plugins": [HALF_MIXED()]} if precision == "16-mixed" else {"precision": precision}
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, **precise,
        )  # fmt: skip
        parts: Any = trainer.predict(module, datamodule=SeedsDataModule(predict_samples=4, eval_batch_size=4))
        return [record for part in parts for record in part.records], regularizer

    return run


@pytest.fixture(scope="module")
def expected(aligned: Any) -> list[Record]:
    records: list[Record] = aligned("32-true")[0]
    return records


@pytest.mark.parametrize("precision", ROUNDOFF)
def test_rewards_follow_those_of_single_precision(aligned: Any, expected: list[Record], precision: str) -> None:
    """Three calls of the network in a sample, and six updates that feed back."""
    records, regularizer = aligned(precision)
    assert [record.rewards for record in records] != [other.rewards for other in expected]
    for record, other in zip(records, expected, strict=True):
        assert record.rewards == pytest.approx(other.rewards, abs=ROUNDOFF[precision])  # of numbers in [0, 1]
        assert other.rewards[-1] - other.rewards[0] > 2 * ROUNDOFF[precision]  # they rise by more than they differ
        assert record.noise.dtype == record.sample.dtype == torch.float32
    assert regularizer.seen == {torch.float32}


@pytest.mark.parametrize("precision", ROUNDOFF)
def test_p_of_z_is_that_of_single_precision(aligned: Any, expected: list[Record], precision: str) -> None:
    """At the start, where z is the same, to the bit."""
    for record, other in zip(aligned(precision)[0], expected, strict=True):
        assert record.log_probabilities[0] == other.log_probabilities[0]
        assert record.log_probabilities == pytest.approx(other.log_probabilities, abs=0.5)


def test_the_regularizer_moves_z_as_in_single_precision() -> None:
    """Under autocast its gradient would be of products of rounded numbers."""
    noise, found = torch.randn(3, 1024, generator=torch.Generator().manual_seed(0)) * 1.3, []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            optimizer = NoiseOptimizer(lambda z: z, lambda x: x.mean(1) * 0, steps=3, typical_probability=0)
            found.append([record.log_probabilities for record in optimizer.run(noise)])
    assert found[0] == found[1]
    assert found[0][0][0] < found[0][0][-1]
