"""Fits of planners: noise levels per token, held ends, units from the data."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.batch import Batch, NoisyBatch
from constrained_diffusion.datamodules.generated import GeneratedDataModule
from constrained_diffusion.denoisers import PretrainedDenoiser
from constrained_diffusion.denoisers.adapter import Denoiser
from constrained_diffusion.denoisers.schedule import DiffusersSchedule
from constrained_diffusion.diffusion.normalizer import MeasuredNormalizer
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.domains.mazes import HeldEnds
from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones
from constrained_diffusion.domains.mazes.planners import TransformerPlanner
from constrained_diffusion.domains.mazes.plans import points
from constrained_diffusion.fine_tuning.loss import MinSNR
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.noising import PerToken, draw_training
from constrained_diffusion.runtime.data import DiffusionDataModule, TensorRows

START, GOAL = [-2.5, 2.5], [2.5, -2.5]


class Plans(DiffusionDataModule):
    """40 random plans about (1, -2)."""

    def build(self) -> tuple[TensorRows, TensorRows]:
        generator = torch.Generator().manual_seed(0)
        plans = torch.randn(40, 6, 4, 2, generator=generator) * torch.tensor([0.5, 2.0]) + torch.tensor([1.0, -2.0])
        return TensorRows(plans[:32]), TensorRows(plans[32:])


class Seen(TransformerPlanner):
    """Remembers what it was given."""

    calls: tuple[list[tuple[Tensor, Tensor]], ...] = ([],)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        if self.training:
            self.calls[0].append((sample.detach().clone(), timestep.clone()))
        result: Tensor = super().forward(sample, timestep)
        return result


def planner(network: type[TransformerPlanner] = TransformerPlanner) -> Denoiser:
    torch.manual_seed(0)
    schedule = DiffusersSchedule({"num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "sample"})
    small = network((6, 4, 2), width=16, depth=1, heads=2, feedforward=16)
    return Denoiser(small, schedule, MeasuredNormalizer(2))


def module(denoiser: Denoiser, **settings: Any) -> ConstrainedDiffusion:
    settings = {"sampler": Sampler(steps=4), "optimizer": partial(torch.optim.Adam, lr=1e-3), **settings}
    return ConstrainedDiffusion(denoiser, **settings)


def data(**settings: Any) -> Plans:
    return Plans(**{"batch_size": 8, "eval_batch_size": 8, **settings})


def test_units_come_from_the_data_and_travel_with_the_model(fit: Any, tmp_path: Path) -> None:
    model, plans = module(planner()), data()
    fit(model, plans, max_epochs=1)
    rows = plans.data[0].clean.flatten(0, -2)
    assert torch.allclose(model.denoiser.codec.mean, rows.mean(0), atol=1e-5)
    assert torch.allclose(model.denoiser.codec.std, rows.std(0), rtol=1e-5)
    model.export(tmp_path / "planner")
    loaded = PretrainedDenoiser(str(tmp_path / "planner"))
    assert torch.equal(loaded.codec.mean, model.denoiser.codec.mean)
    assert torch.equal(loaded.codec.std, model.denoiser.codec.std)


def test_a_share_of_the_rows_is_noised_by_token(fit: Any) -> None:
    Seen.calls[0].clear()
    fit(module(planner(Seen), noise_levels=PerToken(0.5), loss_weight=MinSNR(100.0, 1.0)), data(), max_epochs=1)
    levels = torch.cat([timesteps for _, timesteps in Seen.calls[0]])
    assert levels.shape == (32, 6)
    assert levels[:, 1:-1].diff(dim=1).any(1).sum() == 8  # a quarter by token, a quarter with ends that may be clean


def test_a_row_is_as_noisy_as_its_noisiest_token() -> None:
    """It is what T_phi is compared with: one token above hides the whole row from the constraints."""
    step = draw_training(Batch(torch.randn(8, 6, 4, 2)), planner(), (0, 0), (0, 1), 500, PerToken(1.0))
    assert step.highest.tolist() == [max(row) for row in step.timesteps.tolist()]
    assert step.highest.tolist() != [min(row) for row in step.timesteps.tolist()]


def test_errors_are_weighted_by_the_level_of_their_own_token() -> None:
    model = module(planner(), loss_weight=MinSNR(100.0, 1.0))
    clean, noise = torch.randn(3, 6, 4, 2), torch.randn(3, 6, 4, 2)
    levels = torch.randint(1000, (3, 6))
    schedule = model.denoiser.noise_schedule
    noisy = schedule.add_noise(clean, noise, levels)
    prediction = model.denoiser.predict(noisy, levels)
    step = NoisyBatch(clean, clean, noise, noisy, levels, levels.amax(1))
    found = model.loss.diffusion_loss(step, prediction, None)
    expected = 0.0
    error = (prediction.output - clean).detach().square()
    for row in range(3):
        for token in range(6):
            abar = float(schedule.alphas_cumprod[levels[row, token]])
            weight = min(max(abar / (1 - abar), 1.0), 100.0)
            expected += weight * float(error[row, token].sum()) / clean.numel()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


def test_held_ends_are_clean_in_training_as_in_sampling(fit: Any) -> None:
    Seen.calls[0].clear()
    model = module(planner(Seen), guide=HeldEnds(START, GOAL))
    fit(model, data(), max_epochs=1)
    codec = model.denoiser.codec
    for noisy, levels in Seen.calls[0]:
        assert not levels[:, [0, -1]].any()
        assert levels[:, 1:-1].diff(dim=1).eq(0).all()
        ends = codec.decode(noisy)[:, [0, -1]]
        assert torch.allclose(ends, torch.tensor([START, GOAL])[None, :, None].expand(8, 2, 4, 2), atol=1e-4)
    plans = model.sample(range(3))
    assert torch.allclose(points(plans)[:, [0, -1]], torch.tensor([START, GOAL]).expand(3, 2, 2), atol=1e-4)


def test_a_guides_samples_are_cached_apart(fit: Any, tmp_path: Path) -> None:
    files = set()
    for guide in (None, HeldEnds(START), HeldEnds(goal=GOAL)):
        model = module(planner(), constraints=ForbiddenZones("open", centres=[[0.0, 0.0]], margin=0.0), guide=guide)
        generated = GeneratedDataModule(
            samples=8, held_out=2, batch_size=4, sampler=Sampler(steps=2), cache_dir=str(tmp_path)
        )
        fit(model, generated, max_epochs=1)
        files.add(generated.cache_file())
    assert len(files) == 3


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"noise_levels.share is a share of the rows, in \[0, 1\]; got 1.5"):
        PerToken(1.5)
    with pytest.raises(ValueError, match="noise_levels cannot differ within a sample in 'conditioned_algorithm1'"):
        module(planner(), noise_levels=PerToken(0.5), formulation="conditioned_algorithm1")
