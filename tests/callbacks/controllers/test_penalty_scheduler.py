"""The schedule of the paper's Table 1, tau, and Algorithm 1's inner loop."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback

from constrained_diffusion.callbacks import PenaltyScheduler
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

SGD = partial(torch.optim.SGD, lr=1e-3)


class Watch(Callback):
    """Notes what every step used: its coefficient, its P, and its rows."""

    def __init__(self):
        self.coefficients, self.penalties, self.rows = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.coefficients.append(float(pl_module.steering.penalty_coefficient[0]))
        self.rows.append(batch.rows.tolist())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.penalties.append(float(outputs["penalty"][0]))


@pytest.fixture
def run(tiny_denoiser, too_bright, tiny_data, fit):
    def run(scheduler, **trainer):
        watch = Watch()
        module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), "penalty", optimizer=SGD)
        fit(module, tiny_data(), callbacks=[watch, scheduler], **{"max_epochs": 15, **trainer})
        return watch

    return run


def test_table_1(run):
    """i = 1 .. 60: c r^floor(min(i, 50) / 10), from 0.05 to 0.05 * 1.2^5 = 0.1244."""
    got = run(
        PenaltyScheduler(initial=0.05, growth_factor=1.2, every_n_steps=10, max_iterations=50, stop_below=0.0)
    ).coefficients
    assert got == pytest.approx([0.05 * 1.2 ** (min(i, 50) // 10) for i in range(1, 61)])
    assert got[-1] == pytest.approx(0.124416)


def test_each_constraint_may_begin_with_its_own_coefficient(tiny_denoiser, too_bright, tiny_data, fit):
    module = ConstrainedDiffusion(tiny_denoiser(), [too_bright(), too_bright()], "penalty", optimizer=SGD)
    fit(module, tiny_data(), [PenaltyScheduler(initial=[0.5, 8.0], growth_factor=2.0, every_n_steps=2)], max_steps=3)
    assert module.steering.penalty_coefficient.tolist() == [2.0, 32.0]
    with pytest.raises(ValueError, match=r"as many initial coefficients as the model has constraints, 2, got 1"):
        fit(module, tiny_data(), [PenaltyScheduler(initial=[0.5])], max_steps=1)


def test_a_margin_is_told_beside_what_does_not_hold(tiny_denoiser, too_bright, tiny_data, fit, caplog):
    wide, plain = too_bright(), too_bright()
    wide.margin = 0.25
    module = ConstrainedDiffusion(tiny_denoiser(), [wide, plain], "penalty", optimizer=SGD)
    with caplog.at_level(logging.INFO):
        fit(module, tiny_data(), [PenaltyScheduler(stop_below=0.0)], max_steps=1)
    told = [record.message for record in caplog.records if "still does not hold" in record.message]
    assert ["with its margin of 0.25, which samples are not judged by" in text for text in told] == [True, False]


def test_accumulated_micro_batches_are_one_step(run):
    got = run(
        PenaltyScheduler(initial=1.0, growth_factor=2.0, every_n_steps=1, stop_below=0.0),
        accumulate_grad_batches=2,
        max_epochs=2,
    )
    assert got.coefficients == [2.0, 2.0, 4.0, 4.0, 8.0, 8.0, 16.0, 16.0]


@pytest.mark.parametrize(("scope", "steps"), [("fit", 2), ("batch", 1)])
def test_stop_ends_the_fit_after_the_first_satisfied_step(run, scope, steps):
    """With scope "fit" the host reads of a step what the step before it came to."""
    got = run(PenaltyScheduler(stop_below=1e9, when_satisfied="stop", scope=scope), min_epochs=0)
    assert len(got.penalties) == steps


def test_a_resumed_fit_knows_that_the_last_step_was_satisfied(tiny_denoiser, too_bright, tiny_data, fit, tmp_path):
    def part(steps, checkpoint=None):
        module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), "penalty", optimizer=SGD)
        scheduler = PenaltyScheduler(stop_below=1e9, when_satisfied="stop")
        trainer = fit(module, tiny_data(), [scheduler], checkpoint, max_steps=steps, max_epochs=-1)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return trainer.global_step

    assert part(1) == 1
    assert part(5, str(tmp_path / "1.ckpt")) == 2


def test_release_writes_tau(run, tiny_denoiser, too_bright, tiny_data, fit):
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), "penalty", optimizer=SGD)
    fit(module, tiny_data(), callbacks=[PenaltyScheduler(stop_below=0.03)], max_steps=1)
    assert module.steering.stop_below.tolist() == pytest.approx([0.03])


def test_batch_scope_repeats_the_same_rows_and_starts_c_anew(run):
    got = run(
        PenaltyScheduler(
            initial=1.0, growth_factor=2.0, every_n_steps=2, max_iterations=3, stop_below=0.0, scope="batch"
        ),
        max_epochs=3,
    )
    assert got.rows[0] == got.rows[1] == got.rows[2]
    assert got.rows[3] == got.rows[5]
    assert set(got.rows[0]).isdisjoint(got.rows[3])
    assert got.coefficients[:6] == [1.0, 2.0, 2.0, 1.0, 2.0, 2.0]  # i = 1, 2, 3, then 1 again
    assert len(set(got.penalties[:3])) == 3  # fresh noise each time


def test_batch_scope_leaves_a_satisfied_batch_at_once(run):
    got = run(PenaltyScheduler(max_iterations=3, stop_below=1e9, scope="batch"), max_epochs=1)
    assert sorted(i for rows in got.rows for i in rows) == list(range(64))


def test_batch_scope_with_accumulation_repeats_the_whole_group(run):
    scheduler = PenaltyScheduler(max_iterations=2, stop_below=0.0, scope="batch")
    got = run(scheduler, accumulate_grad_batches=2, max_epochs=2)
    assert got.rows[:2] == got.rows[2:4]
    assert got.rows[4:6] == got.rows[6:8]
    assert got.rows[0] != got.rows[4]


def test_batch_scope_repeats_what_the_short_last_step_of_an_epoch_had(run):
    """Four batches an epoch, three a step: the second step has one micro-batch alone, and only that comes again."""
    got = run(
        PenaltyScheduler(initial=1.0, growth_factor=2.0, max_iterations=5, stop_below=0.0, scope="batch"),
        accumulate_grad_batches=3,
        max_epochs=2,
    )
    assert got.rows[3] == got.rows[0]
    assert got.rows[4:7] == got.rows[:3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"growth_factor": 0.9}, "growth_factor must be at least 1, so that the penalty never weakens; got 0.9"),
        ({"initial": 0.0}, "expected initial > 0"),
        ({"initial": [1.0, 0.0]}, "expected initial > 0"),
        ({"stop_below": -1.0}, "stop_below >= 0"),
        ({"every_n_steps": 0}, "must be at least 1, got 0"),
        ({"when_satisfied": "rest"}, "'release' or 'stop'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PenaltyScheduler(**settings)


def test_a_module_without_constraints_is_refused(tiny_denoiser, tiny_data, fit):
    with pytest.raises(
        ValueError, match="PenaltyScheduler steers the penalties of a module with constraints, but the model has none"
    ):
        fit(ConstrainedDiffusion(tiny_denoiser(), optimizer=SGD), tiny_data(), callbacks=[PenaltyScheduler()])


def test_batch_scope_needs_the_keyed_sampler(tiny_denoiser, too_bright, tiny_data, tmp_path):
    from lightning.pytorch import Trainer

    data = tiny_data()
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), optimizer=SGD)
    trainer = Trainer(
        max_steps=1,
        callbacks=[PenaltyScheduler(scope="batch")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    with pytest.raises(ValueError, match="repeats batches through the data module's KeyedSampler"):
        trainer.fit(module, train_dataloaders=data.train_dataloader())


@pytest.mark.parametrize("scope", ["fit", "batch"])
def test_a_fit_that_it_ended_stays_ended(tiny_denoiser, too_bright, tiny_data, fit, tmp_path, scope):
    def part(stop_below, checkpoint=None):
        module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), "penalty", optimizer=SGD)
        scheduler = PenaltyScheduler(stop_below=stop_below, when_satisfied="stop", scope=scope)
        return fit(module, tiny_data(), [scheduler], checkpoint, max_epochs=3, min_epochs=0)

    first = part(1e9)
    first.save_checkpoint(tmp_path / "ended.ckpt")
    assert 0 < first.global_step < 12
    assert part(0.0, str(tmp_path / "ended.ckpt")).global_step == first.global_step


def test_a_coefficient_beyond_single_precision_is_refused():
    with pytest.raises(ValueError, match="C grow 5 times by 1e\\+30 to 1e149, beyond single precision"):
        PenaltyScheduler(growth_factor=1e30)
