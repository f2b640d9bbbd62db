"""Which samples are measured, by whom and against what: the evaluator, with samples made up by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.evaluation import OwnViolations
from constrained_diffusion.fine_tuning.evaluator import HeldOut
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.guides import Chain, Guide

SAMPLER = Sampler(steps=4)


def numbered(count: int, level: float = 0.0) -> Tensor:
    """Pictures `(count, 1, 8, 8)`, each of one grey of its own."""
    return (torch.arange(count) / 100 + level)[:, None, None, None].expand(-1, 1, 8, 8)


def test_stored_samples_are_taken_by_seed_as_far_as_they_go(
    tiny_denoiser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = ConstrainedDiffusion(tiny_denoiser(), sampler=SAMPLER).evaluator
    monkeypatch.setattr(evaluator, "stored_samples", lambda precision: numbered(6))
    assert torch.equal(evaluator.pretrained_samples([3, 5, 0], "32-true"), numbered(6)[[3, 5, 0]])
    torch.testing.assert_close(evaluator.pretrained_samples([5, 6], "32-true"), evaluator.sample([5, 6], "pretrained"))


class Brightness(OwnViolations):
    """The mean of all samples; says on both sides that it has compared, as one may that writes zeros into "before"."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def update(self, clean: Tensor) -> None:
        super().update(clean)
        self.means += clean.flatten(1).mean(1).tolist()

    def compute(self) -> dict[str, Any]:
        return {**super().compute(), "metrics": {"brightness": sum(self.means) / len(self.means)}}

    def reset(self) -> None:
        super().reset()
        self.means = []

    def compare(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        after["metrics"]["brighter"] = after["metrics"]["brightness"] - before["metrics"]["brightness"]
        before["metrics"]["brightness"] = 1e3


def test_every_validation_is_compared_with_the_stored_samples_of_its_own_seeds(
    tiny_denoiser: Any, too_bright: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = ConstrainedDiffusion(tiny_denoiser(), too_bright(), evaluation=Brightness(), sampler=SAMPLER).evaluator
    monkeypatch.setattr(evaluator, "stored_samples", lambda precision: numbered(6))
    for first, before in ((0, 0.015), (2, 0.035), (2, 0.035), (0, 0.015)):  # seeds 2 .. 5 end with the stored ones
        evaluator.start("val")
        evaluator.tallies["val"].update(torch.full((4, 1, 8, 8), 0.5))
        found = evaluator.validation_figures(first, "32-true")
        assert found["val/brighter"] == pytest.approx(0.5 - before, abs=1e-5)
    evaluator.start("val")
    evaluator.tallies["val"].update(torch.full((4, 1, 8, 8), 0.5))
    assert "val/brighter" not in evaluator.validation_figures(3, "32-true")  # of seed 6 there is none


def test_the_held_out_loss_is_the_mean_over_rows_not_over_batches() -> None:
    held_out = HeldOut(torch.device("cpu"))
    held_out.update(torch.tensor(1.0), 6)
    held_out.update(torch.tensor(5.0), 2)
    assert float(held_out.compute()) == 2.0


def test_the_evaluation_itself_is_filled_by_val_and_after_and_left_alone_by_before(tiny_denoiser: Any) -> None:
    """Whoever asks the module's evaluation after a validation, such as for its figures, finds them in it."""
    evaluation = Brightness()
    evaluator = ConstrainedDiffusion(tiny_denoiser(), evaluation=evaluation).evaluator
    for name, filled in (("val", 1), ("after", 1), ("before", 0)):
        evaluation.reset()
        evaluator.start(name)
        evaluator.tallies[name].update(torch.ones(1, 1, 8, 8))
        assert len(evaluation.means) == filled
        assert evaluator.compute()[name]["n"] == 1


class Shifted(Guide):
    """The predicted noise times a factor, plus a shift: two of them do not commute."""

    def __init__(self, factor: float, shift: float) -> None:
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, predict: Any, denoiser: Any) -> Any:
        def shifted(noisy: Tensor, timesteps: Tensor) -> Any:
            found = predict(noisy, timesteps)
            output = found.output * self.factor + self.shift
            return denoiser.interpret(output, noisy, timesteps)

        return shifted

    def check_data(self, shape: tuple[int, ...]) -> None:
        if shape[-1] != shape[-2]:
            raise ValueError(f"Shifted expects squares, got {shape}.")


def test_a_guide_of_one_drawing_comes_after_the_model_s_own(tiny_denoiser: Any) -> None:
    first, second = Shifted(2.0, 0.0), Shifted(1.0, 0.5)
    own, both = (
        ConstrainedDiffusion(tiny_denoiser(), sampler=SAMPLER, guide=g) for g in (first, Chain([first, second]))
    )
    torch.testing.assert_close(own.sample([0, 1], guide=second), both.sample([0, 1]))
    swapped = ConstrainedDiffusion(tiny_denoiser(), sampler=SAMPLER, guide=second)
    assert not torch.allclose(swapped.sample([0, 1], guide=first), both.sample([0, 1]), atol=1e-3)


def test_a_guide_says_before_any_work_what_it_cannot_steer(tiny_denoiser: Any) -> None:
    denoiser = tiny_denoiser()
    denoiser.sample_shape = (1, 8, 9)
    evaluator = ConstrainedDiffusion(denoiser, guide=Shifted(1.0, 0.0)).evaluator
    with pytest.raises(ValueError, match="Shifted expects squares"):
        evaluator.check("test", (1, 8, 9))


def test_the_evaluation_reads_the_constraints_of_the_fit(tiny_denoiser: Any, too_bright: Any) -> None:
    constraint, evaluation = too_bright(), OwnViolations()
    ConstrainedDiffusion(tiny_denoiser(), constraint, evaluation=evaluation)
    assert evaluation.marks(torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])) == ["", "violation"]
