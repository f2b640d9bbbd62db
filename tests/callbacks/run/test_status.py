"""How a fit ended: what the sentence says, what the file says, and what divergence leaves untouched."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from constrained_diffusion.callbacks import DivergedError, FitStatus, LastCheckpoint
from constrained_diffusion.callbacks.run.status import describe, sentence
from constrained_diffusion.evaluation import Figure
from constrained_diffusion.fine_tuning.loss import PenaltyLoss
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.objectives import Constraint

GOOD, BAD = 0.1, 0.9


def status(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "status.json").read_text())
    return content


def test_feasible_tells_of_the_best_validation(
    scripted: Any, tiny_data: Any, fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit(scripted([(3.0, GOOD), (1.5, GOOD), (2.0, GOOD), (1.0, BAD)]), tiny_data(), [FitStatus()], max_epochs=4)
    written = status(tmp_path)
    assert written["status"] == "feasible"
    assert written["values"]["step"] == 8
    assert written["values"]["val/own_violation_rate"] == 0.0
    assert written["cost"] == "held-out loss 1.5000"
    assert written["seconds"] > written["evaluation_seconds"] > 0
    told = "feasible: at step 8 of 16, 0 % of the EMA samples violate by own g (upper 95 % bound 31.3 %, at most"
    assert told in caplog.text


def test_infeasible_at_budget(
    scripted: Any, tiny_data: Any, fit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit(scripted([(3.0, BAD), (1.0, BAD)]), tiny_data(), [FitStatus()], max_epochs=2)
    assert status(tmp_path)["status"] == "infeasible"
    assert status(tmp_path)["values"]["step"] == 8  # the last
    assert "infeasible: after all 8 steps, 100.0 % of the EMA samples violate by own g" in caplog.text
    assert "above the allowed 50.0 %, n = 8)" in caplog.text


def test_without_samples_it_says_what_is_missing(
    scripted: Any, tiny_data: Any, fit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit(scripted([(1.0, GOOD)]), tiny_data(val_samples=0), [FitStatus()], max_epochs=1)
    assert "no validation drew samples; set data.val_samples" in caplog.text


def test_a_fit_that_ends_before_its_first_validation_says_what_to_change(
    scripted: Any, tiny_data: Any, fit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    module = scripted([(1.0, GOOD)])
    with caplog.at_level(logging.INFO):
        fit(module, tiny_data(), [FitStatus()], max_epochs=2, check_val_every_n_epoch=3)
    way_on = "raise trainer.max_epochs (2) to trainer.check_val_every_n_epoch (3) at least, or lower that."
    first, *_, last = [record.getMessage() for record in caplog.records if "max_epochs (2)" in record.getMessage()]
    assert first == f"this fit has no validation and so no verdict: {way_on}"
    assert last.endswith(f"no validation drew samples; {way_on}")
    assert "data.val_samples" not in caplog.text


def test_pretraining_has_no_status(tiny_denoiser: Any, tiny_data: Any, fit: Any, tmp_path: Path) -> None:
    fit(ConstrainedDiffusion(tiny_denoiser()), tiny_data(), [FitStatus()], max_epochs=1)
    assert not (tmp_path / "status.json").exists()


class NaNLoss(PenaltyLoss):
    broken = False

    def diffusion_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().diffusion_loss(*args, **kwargs) * (float("nan") if self.broken else 1.0)


class NaNAt(ConstrainedDiffusion):
    """The loss is NaN in one step."""

    loss_class, broken_step = NaNLoss, 6

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.loss.broken = self.global_step == self.broken_step - 1  # type: ignore[assignment]
        return super().training_step(batch, batch_idx)


def test_a_loss_that_is_no_number(
    tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any, tmp_path: Path
) -> None:
    module = NaNAt(tiny_denoiser(), too_bright(), optimizer=partial(torch.optim.SGD, lr=0.01))
    with pytest.raises(DivergedError, match=r"the loss is nan at step 6 \(not finite: .*loss/diffusion.*learning rate"):
        fit(
            module,
            tiny_data(),
            [FitStatus(), LastCheckpoint(every_n_seconds=0)],
            max_epochs=3,
            enable_checkpointing=True,
        )
    assert (status(tmp_path)["status"], status(tmp_path)["step"]) == ("diverged", 6)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4


@pytest.mark.parametrize(("log_every", "steps"), [(1, 6), (4, 8), (5, 8), (100, 8)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_are_read_at_log_steps_and_the_first_broken_step_is_named(
    tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any, log_every: int, steps: int, accumulate: int
) -> None:
    """Four steps an epoch, with a validation at its end, which is read before too."""
    module = NaNAt(tiny_denoiser(), too_bright(), optimizer=partial(torch.optim.SGD, lr=0.01))
    settings = {"log_every_n_steps": log_every, "accumulate_grad_batches": accumulate}
    with pytest.raises(DivergedError, match="the loss is nan at step 6 "):
        fit(module, tiny_data(batch_size=16 // accumulate), [FitStatus()], max_epochs=3, **settings)
    assert module.trainer.global_step == steps


def test_a_fit_that_ends_between_log_steps_reads_what_is_left(
    tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any
) -> None:
    module = NaNAt(tiny_denoiser(), too_bright(), optimizer=partial(torch.optim.SGD, lr=0.01))
    with pytest.raises(DivergedError, match="the loss is nan at step 6 "):
        fit(module, tiny_data(), [FitStatus()], max_steps=7, max_epochs=-1, limit_val_batches=0)


def test_of_several_ranks_the_first_broken_step_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This rank saw nothing wrong; another one did at step 3, a third one at step 2."""
    ranks = [None, (3, float("nan"), ["late"]), (2, float("inf"), ["early"])]
    monkeypatch.setattr("constrained_diffusion.callbacks.run.status.gather_from_ranks", lambda own: [own, *ranks])
    strategy = SimpleNamespace(reduce_boolean_decision=lambda own, all: True)
    trainer: Any = SimpleNamespace(strategy=strategy, global_step=5, is_global_zero=True, default_root_dir=tmp_path)
    with pytest.raises(DivergedError, match=r"the loss is inf at step 2 \(not finite: early\)"):
        FitStatus().on_train_end(trainer, None)  # type: ignore[arg-type]
    assert status(tmp_path)["step"] == 2


class NaNRow(ConstrainedDiffusion):
    """One training sample holds a NaN."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 2:
            batch.clean[1, 0, 3, 3] = float("nan")
            self.broken = int(batch.rows[1])
        return super().training_step(batch, batch_idx)


def test_the_rows_that_broke_the_loss_are_named(tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any) -> None:
    module = NaNRow(tiny_denoiser(), too_bright(), "penalty", optimizer=partial(torch.optim.SGD, lr=0.01))
    with pytest.raises(DivergedError) as caught:
        fit(module, tiny_data(), [FitStatus()], max_epochs=3)
    assert "at step 3" in str(caught.value)
    assert f"1 of 16 rows, {module.broken} of the training set" in str(caught.value)


class NaNConstraint(Constraint):
    """g is NaN for one row."""

    def forward(self, clean: torch.Tensor) -> torch.Tensor:
        values = clean.flatten(1).mean(1)
        return torch.where(torch.arange(len(values)) == 2, float("nan"), values)


def test_the_constraint_and_the_row_that_broke_the_loss_are_named(tiny_denoiser: Any, tiny_data: Any, fit: Any) -> None:
    module = ConstrainedDiffusion(tiny_denoiser(), NaNConstraint(), "penalty", optimizer=partial(torch.optim.SGD, lr=0))
    with pytest.raises(DivergedError, match=r"penalty/NaNConstraint.*1 of 16 rows, \d+ of .* look at NaNC.*: its g"):
        fit(module, tiny_data(), [FitStatus()], max_epochs=1)


class BrokenStep(ConstrainedDiffusion):
    """The loss is finite, its gradient is not."""

    def on_after_backward(self) -> None:
        gradient = self.denoiser.network.get_parameter("last.bias").grad
        assert gradient is not None
        gradient.fill_(float("inf"))


@pytest.mark.parametrize("val_samples", [0, 8])
@pytest.mark.parametrize("validate_every", [1, 5])
def test_weights_that_the_last_step_of_an_epoch_broke_are_not_saved(
    tiny_denoiser: Any, too_bright: Any, tiny_data: Any, fit: Any, tmp_path: Path, val_samples: int, validate_every: int
) -> None:
    module = BrokenStep(tiny_denoiser(), too_bright(), optimizer=partial(torch.optim.SGD, lr=0.01))
    data = tiny_data(batch_size=64, val_samples=val_samples)
    settings = {"enable_checkpointing": True, "check_val_every_n_epoch": validate_every}
    with pytest.raises(DivergedError, match=r"1 of 6 tensors of weights are broken at step 1 .*last.bias"):
        fit(module, data, [FitStatus(), LastCheckpoint(every_n_seconds=0)], **settings)
    assert status(tmp_path)["status"] == "diverged"
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_resumed_fit_goes_on_counting() -> None:
    first, second = FitStatus(), FitStatus()
    first.best, first.last = {"val/diffusion_loss": 1.0}, {"step": 2.0}
    first.seconds, first.evaluation_seconds = 100.0, 10.0
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["seconds"] >= 100.0
    assert second.evaluation_seconds == 10.0
    assert (second.best, second.last) == (first.best, first.last)


def test_the_settings_behind_the_verdict_are_recorded(scripted: Any, tiny_data: Any, fit: Any, tmp_path: Path) -> None:
    module = scripted([(3.0, GOOD)])
    module.steering.stop_below.fill_(0.25)
    fit(module, tiny_data(), [FitStatus()], max_epochs=1)
    name = module.steering.names[0]
    assert status(tmp_path)["max_violation_rate"] == module.max_violation_rate
    assert status(tmp_path)["stop_below"] == {name: 0.25}
    assert status(tmp_path)["values"][f"val/violation_rate/{name}"] == 0.0
    assert status(tmp_path)["values"]["val/n"] == 8


FIGURES = [
    asdict(Figure("total_variation", "total variation of the rest", "distance", headline=True)),
    asdict(Figure("unsure_rate", "unsure", "rate", headline=True)),
    asdict(Figure("fid", "FID", headline=True)),
    asdict(Figure("kid", "KID")),
]


def test_words() -> None:
    values = {"val/own_violation_rate": 0.002, "val/own_violation_upper_95": 0.0063, "step": 64.0, "val/fid": 7.25}
    assert sentence("feasible", values, 0.01, 96, 123.4, {"figures": FIGURES}) == (
        "feasible: at step 64 of 96, 0.2 % of the EMA samples violate by own g (upper 95 % bound 0.63 %, at most the "
        "allowed 1.0 %); 123 s.\nCost: FID 7.2."
    )
    assert describe({}, {}) == "not measured"
    everything = {
        "val/diffusion_loss": 0.03,
        "val/total_variation": 0.0412,
        "val/unsure_rate": 0.125,
        "val/fid": 1.0,
        "val/kid": 2.0,
    }
    assert describe(everything, {"figures": FIGURES}) == (
        "held-out loss 0.0300, total variation of the rest 0.041, unsure 12.5 %, FID 1.0"
    )


def test_each_constraint_has_its_own_words_and_the_judge_has_others() -> None:
    values = {
        "val/own_violation_rate": 0.75, "val/own_violation_upper_95": 0.9, "val/n": 8.0, "step": 4.0,
        "val/violation_rate/A": 0.75, "val/violation_upper_95/A": 0.9,
        "val/violation_rate/B": 0.25, "val/violation_upper_95/B": 0.6,
        "val/violation_rate": 0.5, "val/violation_upper_95": 0.8,
    }  # fmt: skip
    assert sentence("infeasible", values, 0.01, 4, 1.0, {"subject": "fours"}).splitlines()[1:] == [
        "By own g: A 75.0 % (upper 95 % bound 90.0 %, n = 8); B 25.0 % (upper 95 % bound 60.0 %, n = 8).",
        "By the judge: fours 50.0 % (upper 95 % bound 80.0 %, n = 8).",
        "Cost: not measured.",
    ]


def test_the_verdict_is_by_the_bound_which_may_just_reach_what_is_allowed(
    scripted: Any, tiny_data: Any, fit: Any, tmp_path: Path
) -> None:
    """None of 8 samples violate, which a rate of 31 % may be behind; where all may violate, all do."""
    for allowed, brightness, expected in ((0.3, GOOD, "infeasible"), (0.32, GOOD, "feasible"), (1.0, BAD, "feasible")):
        fit(scripted([(1.0, brightness)], max_violation_rate=allowed), tiny_data(), [FitStatus()], max_epochs=1)
        assert status(tmp_path)["values"]["val/own_violation_rate"] == float(brightness == BAD)
        assert status(tmp_path)["status"] == expected


def test_a_validation_without_a_held_out_loss_is_not_the_best(
    scripted: Any, tiny_data: Any, fit: Any, tmp_path: Path
) -> None:
    fit(scripted([(float("nan"), GOOD), (2.0, GOOD)]), tiny_data(), [FitStatus()], max_epochs=2)
    assert status(tmp_path)["values"]["step"] == 8


def test_the_check_before_the_fit_is_no_validation(scripted: Any, tiny_data: Any, fit: Any) -> None:
    callback = FitStatus()
    fit(scripted([(1.0, GOOD), (2.0, GOOD)]), tiny_data(), [callback], max_epochs=2, num_sanity_val_steps=-1)
    assert [found["step"] for found in (callback.best, callback.last)] == [4, 8]


def test_too_few_samples_for_any_verdict_are_told_of_at_the_start(
    scripted: Any, tiny_data: Any, fit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit(scripted([(1.0, GOOD)], max_violation_rate=0.01), tiny_data(), [FitStatus()], max_epochs=1)
    assert "no validation can show that at most 1.0 % of the samples violate" in caplog.text
    assert "set data.val_samples to at least 299" in caplog.text


def test_the_seconds_of_all_validations_add_up(scripted: Any, tiny_data: Any, fit: Any, tmp_path: Path) -> None:
    callback = FitStatus()
    callback.seconds, callback.evaluation_seconds = 200.0, 100.0  # of an earlier part
    fit(scripted([(1.0, GOOD)]), tiny_data(), [callback], max_epochs=1)
    assert status(tmp_path)["evaluation_seconds"] > 100.0
    assert status(tmp_path)["seconds"] > 200.0
