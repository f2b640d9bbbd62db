"""The training step against formulas written out by hand, and what a step may and may not touch."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from constrained_diffusion.batch import Batch, NoisyBatch
from constrained_diffusion.callbacks import PenaltyScheduler
from constrained_diffusion.fine_tuning import hooks
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.objectives import Constraint

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture
def module(tiny_denoiser, too_bright, fit, tiny_data):
    """A factory of modules that are attached to a trainer, ready for `training_step`."""

    def make(**settings):
        arguments = {"denoiser": tiny_denoiser(), "constraints": too_bright(), "max_timestep": 60, "optimizer": SGD}
        module = ConstrainedDiffusion(**{**arguments, **settings})
        fit(module, tiny_data(), max_steps=0)
        module.log_dict = module.log = lambda *args, **kwargs: None
        return module

    return make


def by_hand(module, batch):
    """Recompute what `training_step` draws and measures, from the paper's formulas alone."""
    from constrained_diffusion.runtime.randomness import keyed_normal, stratified_timesteps

    clean = batch.clean * 2 - 1
    rows = range(len(clean))
    noise = keyed_normal([(0, 1, module.batches_seen, i) for i in rows], clean.shape[1:])
    t = stratified_timesteps(0, module.batches_seen, rows, len(clean), 100, 60).long()
    abar = module.denoiser.noise_schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    predicted = module.denoiser.network(noisy, t)
    x_hat = ((noisy - (1 - abar).sqrt() * predicted) / abar.sqrt()).clamp(-1, 1)
    g = ((x_hat + 1) / 2).flatten(1).mean(1) - 0.4
    error = (noise - predicted).square().flatten(1).mean(1)
    return t, noisy, predicted, error, torch.relu(g[t < 60]).square().mean(), (g[t < 60] > 0).float().mean()


def bright_batch():
    return Batch(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)))


def test_eq_14(module):
    m = module(formulation="penalty")
    m.steering.penalty_coefficient.fill_(3.0)
    _, _, _, error, penalty, _ = by_hand(m, bright_batch())
    out = m.training_step(bright_batch(), 0)
    assert penalty > 0
    torch.testing.assert_close(out["loss"], error.mean() + 3.0 * penalty)
    torch.testing.assert_close(out["penalty"], penalty[None].detach())


def test_algorithm_1_value_is_the_noise_error_scaled(module):
    """With the ratio detached, the balanced term's value is C times the noise error, whatever the penalty is."""
    m = module(formulation="algorithm1")
    m.steering.penalty_coefficient.fill_(0.05)
    _, _, _, error, _, _ = by_hand(m, bright_batch())
    torch.testing.assert_close(m.training_step(bright_batch(), 0)["loss"], 1.05 * error.mean())


def test_algorithm_1_gradient_keeps_the_penalty(module):
    m = module(formulation="algorithm1")
    m.steering.penalty_coefficient.fill_(0.05)
    weight = m.denoiser.network.last.weight
    _, _, _, error, _, _ = by_hand(m, bright_batch())
    (attached,) = torch.autograd.grad(error.mean() * 1.05, weight)
    (got,) = torch.autograd.grad(m.training_step(bright_batch(), 0)["loss"], weight)
    assert (got - attached).norm() > 1e-3 * attached.norm()


def test_anchored_starts_at_zero_on_feasible_rows_and_ignores_the_others(module):
    m = module(formulation="anchored_penalty")
    m.steering.penalty_coefficient.fill_(0.0)
    dark = Batch(bright_batch().clean * 0.1)
    assert float(m.training_step(dark, 0)["loss"].detach()) == 0.0
    with torch.no_grad():
        m.denoiser.network.last.bias += 0.5
    assert float(m.training_step(dark, 0)["loss"].detach()) == pytest.approx(
        0.25, rel=1e-4
    )  # every output moved by 0.5
    assert float(m.training_step(Batch(bright_batch().clean * 0 + 0.9), 0)["loss"].detach()) == 0.0


def test_conditioned_is_anchored_where_nothing_is_infeasible(module):
    m = module(formulation="conditioned_algorithm1")
    m.steering.penalty_coefficient.fill_(0.0)
    samples = torch.rand(20, 1, 8, 8) * 0.2 - 1
    m.loss.bank = (samples, torch.ones(20))
    with torch.no_grad():
        m.denoiser.network.last.bias += 0.5
    assert float(m.training_step(bright_batch(), 0)["loss"].detach()) == pytest.approx(0.25, rel=1e-4)
    m.loss.bank = (samples, torch.zeros(20))  # nothing feasible: nothing to hold to
    assert float(m.training_step(bright_batch(), 0)["loss"].detach()) == pytest.approx(0.0, abs=1e-6)


def test_conditioned_needs_the_training_set(tiny_denoiser, too_bright, tiny_data, tmp_path):
    module = ConstrainedDiffusion(tiny_denoiser(), too_bright(), "conditioned_algorithm1", optimizer=SGD)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=1, default_root_dir=tmp_path, accelerator="cpu", enable_model_summary=False, **quiet)
    with pytest.raises(ValueError, match="needs a DiffusionDataModule"):
        trainer.fit(module, train_dataloaders=tiny_data().train_dataloader())


def test_the_bank_has_the_units_of_the_network(module, tiny_data):
    m, data = module(formulation="conditioned_algorithm1"), tiny_data()
    data.setup("fit")
    samples, feasible = hooks.bank(m.networks, m.loss, data)
    clean = data.bank(hooks.BANK)
    torch.testing.assert_close(samples, 2 * clean - 1)
    assert feasible.tolist() == (clean.flatten(1).mean(1) <= 0.4).float().tolist()
    assert 0 < feasible.sum() < len(feasible)


def test_released_at_or_below_tau(module):
    m = module(formulation="penalty")
    _, _, _, error, penalty, _ = by_hand(m, bright_batch())
    m.steering.stop_below.fill_(float(penalty.detach()) * 1.001)
    torch.testing.assert_close(m.training_step(bright_batch(), 0)["loss"], error.mean())


def test_violation_rate_and_two_constraints(module, too_bright):
    class Dark(Constraint):
        def forward(self, clean):
            return 0.2 - clean.flatten(1).mean(1)

    m = module(constraints=[too_bright(), Dark(tolerance=0.05)], formulation="penalty")
    m.steering.penalty_coefficient.copy_(torch.tensor([2.0, 5.0]))
    _, _, _, error, penalty, rate = by_hand(m, bright_batch())
    out = m.training_step(bright_batch(), 0)
    torch.testing.assert_close(out["terms"]["violation_rate/TooBright"], rate)
    assert m.step_log.read().values["violation_rate/TooBright"] == pytest.approx(float(rate))
    assert out["penalty"].shape == (2,)
    torch.testing.assert_close(out["loss"], error.mean() + 2 * penalty + 5 * out["penalty"][1])


def test_one_trained_pass_and_one_frozen(module):
    m = module()
    calls = []
    m.denoiser.network.register_forward_hook(lambda *_: calls.append(("trained", torch.is_grad_enabled())))
    m.networks.pretrained.register_forward_hook(lambda *_: calls.append(("frozen", torch.is_grad_enabled())))
    m.training_step(bright_batch(), 0)
    assert calls == [("frozen", False), ("trained", True)]
    calls.clear()
    m.loss.formulation = type(m.loss.formulation)(balanced=True, anchored=False)
    m.training_step(bright_batch(), 0)
    assert calls == [("trained", True)]


def test_dropout_is_of_the_step_and_never_of_the_frozen_model(module, tiny_denoiser):
    def first_loss(before):
        denoiser = tiny_denoiser()
        denoiser.network.last = nn.Sequential(denoiser.network.last, nn.Dropout(0.5))
        m = module(denoiser=denoiser)
        m.networks.trained.train()
        torch.manual_seed(before)  # what was drawn before, such as by a validation, says nothing
        x = torch.ones(2, 1, 8, 8)
        step = NoisyBatch(x, x, x, x, torch.tensor([3, 50]), torch.tensor([3, 50]))
        torch.testing.assert_close(
            m.networks.predict_frozen(step).output, m.networks.pretrained.eval()(x, step.timesteps)
        )
        return m.training_step(bright_batch(), 0)["loss"]

    assert torch.equal(first_loss(1), first_loss(2))


def test_what_a_validation_put_together_is_let_go(module):
    m = module()
    m.networks._full_copy = (m.networks.ema,)
    m.on_validation_end()
    assert not m.networks._full_copy


def test_the_frozen_copy_is_nowhere(module, fit, tiny_data, tmp_path, tiny_denoiser):
    m = module()
    original = copy.deepcopy(m.networks.pretrained.state_dict())
    trainer = fit(m, tiny_data(), callbacks=[PenaltyScheduler()])
    frozen = {id(p) for p in m.networks.pretrained.parameters()}
    assert not frozen & {id(p) for p in m.parameters()}
    assert not frozen & {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    networks = {key.split(".")[0] for key in saved}
    assert networks == {"networks", "loss"}
    parts = {".".join(key.split(".")[:2]) for key in saved}
    assert parts == {"networks.denoiser", "networks.ema", "loss.steering"}
    for key, value in m.networks.pretrained.state_dict().items():
        assert torch.equal(value, original[key])
    assert not torch.equal(m.denoiser.network.last.weight, m.networks.pretrained.last.weight)


def test_ema(tiny_denoiser, fit, tiny_data):
    m = ConstrainedDiffusion(tiny_denoiser(), ema_decay=0.9, optimizer=SGD)
    expected = m.networks.ema.last.weight.clone()
    seen = []

    class Watch(PenaltyScheduler):
        def on_fit_start(self, trainer, pl_module):
            pass

        def on_train_start(self, trainer, pl_module):
            pass

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(pl_module.denoiser.network.last.weight.detach().clone())

    fit(m, tiny_data(), callbacks=[Watch()])
    for weight in seen:
        expected = 0.9 * expected + 0.1 * weight
    torch.testing.assert_close(m.networks.ema.last.weight, expected)


def test_pretraining_learns(tiny_denoiser, fit, tiny_data):
    m = ConstrainedDiffusion(tiny_denoiser(), optimizer=partial(torch.optim.Adam, lr=1e-2), ema_decay=0.5)
    data = tiny_data()
    batch = data.data[1].__getitems__(list(range(16)))
    before = float(m.held_out_loss(batch))
    fit(m, data, max_epochs=20)
    assert float(m.held_out_loss(batch)) < 0.5 * before


def test_fine_tuning_reduces_the_violation(tiny_denoiser, too_bright, fit, tiny_data):
    denoiser, adam = tiny_denoiser(), partial(torch.optim.Adam, lr=1e-2)
    fit(ConstrainedDiffusion(denoiser, optimizer=adam), tiny_data(), max_epochs=20)
    m = ConstrainedDiffusion(denoiser, too_bright(), "penalty", optimizer=adam, ema_decay=0.5)

    def share():
        return float((m.sample(range(64)).flatten(1).mean(1) > 0.4).float().mean())

    before = share()
    fit(m, tiny_data(), callbacks=[PenaltyScheduler(initial=100.0, stop_below=0.0)], max_epochs=40)
    assert before > 0.5
    assert share() < 0.05


def test_a_constraint_without_gradient_is_refused(tiny_denoiser, fit, tiny_data, too_bright):
    class Counted(too_bright):
        differentiable = False

    with pytest.raises(ValueError, match="Counted is not differentiable; optimise the noise instead"):
        fit(ConstrainedDiffusion(tiny_denoiser(), Counted(), optimizer=SGD), tiny_data())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_timestep": 101}, r"T_phi\) must be in 1 .. 100"),
        ({"formulation": "algoritm1"}, "formulation must be one of penalty, algorithm1"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
    ],
)
def test_bad_settings(tiny_denoiser, too_bright, settings, message):
    with pytest.raises(ValueError, match=message):
        ConstrainedDiffusion(tiny_denoiser(), too_bright(), **settings)


def test_data_of_another_shape(tiny_denoiser, fit, tiny_data):
    class Wide(tiny_data):
        def build(self):
            from constrained_diffusion.runtime.data import TensorRows

            return TensorRows(torch.rand(32, 1, 8, 10)), TensorRows(torch.rand(16, 1, 8, 10))

    with pytest.raises(ValueError, match=r"expects samples of shape \(1, 8, 8\).*data has \(1, 8, 10\)"):
        fit(ConstrainedDiffusion(tiny_denoiser(), optimizer=SGD), Wide())


def test_a_step_record_constraint_sees_everything(module):
    class KeepClose(Constraint):
        needs_step_record = True

        def forward(self, record):
            assert record.frozen_noise is not None
            return (record.predicted_noise - record.frozen_noise).square().flatten(1).mean(1) - 0.1

    m = module(constraints=KeepClose(), formulation="penalty")
    assert float(m.training_step(bright_batch(), 0)["penalty"]) == 0.0
    with torch.no_grad():
        m.denoiser.network.last.bias += 1.0  # every prediction moves by 1: g = 1 - 0.1
    assert float(m.training_step(bright_batch(), 0)["penalty"]) == pytest.approx(0.81, rel=1e-4)


def test_lora_trains_adapters_alone_and_frozen_means_switched_off(tiny_denoiser, too_bright, fit, tiny_data):
    pytest.importorskip("peft")
    settings = {"r": 2, "target_modules": ["first", "last"], "init_lora_weights": False}
    denoiser = tiny_denoiser()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 50])
    expected = denoiser.network(x, t).detach()
    m = ConstrainedDiffusion(denoiser, too_bright(), lora=settings, optimizer=SGD)
    trained = [name for name, p in m.denoiser.network.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    fit(m, tiny_data(), callbacks=[PenaltyScheduler()])
    step = NoisyBatch(x, x, x, x, t, t)
    m.networks.trained.train()
    torch.testing.assert_close(m.networks.predict_frozen(step).output, expected)
    assert m.networks.trained.training  # it is the frozen one too, and goes on training
    assert not torch.allclose(m.denoiser.network(x, t), expected)
