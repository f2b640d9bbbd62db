"""N steps are the same as k steps, a checkpoint, and N - k steps: every piece of state."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from constrained_diffusion.callbacks import PenaltyScheduler
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.schedules import WarmupStableDecay


@pytest.fixture
def make(tiny_denoiser, too_bright, tiny_data):
    def make(scope):
        module = ConstrainedDiffusion(
            tiny_denoiser(),
            too_bright(),
            "anchored_algorithm1",
            max_timestep=60,
            optimizer=partial(torch.optim.Adam, lr=1e-2),
            lr_scheduler=partial(WarmupStableDecay, total_steps=12, warmup_steps=3, decay_steps=4),
        )
        scheduler = PenaltyScheduler(every_n_steps=2, max_iterations=3, stop_below=1e-4, scope=scope)
        return module, tiny_data(), [scheduler]

    return make


@pytest.mark.parametrize("scope", ["fit", "batch"])
@pytest.mark.parametrize("steps", [4, 6])  # at the end of an epoch of 4, and within one
def test_interrupted_equals_uninterrupted(make, fit, same, tmp_path, scope, steps):
    module, data, callbacks = make(scope)
    whole = fit(module, data, callbacks, max_steps=12, max_epochs=-1)
    whole.save_checkpoint(tmp_path / "whole.ckpt")

    module, data, callbacks = make(scope)
    first = fit(module, data, callbacks, max_steps=steps, max_epochs=-1)
    first.save_checkpoint(tmp_path / "part.ckpt")
    module, data, callbacks = make(scope)
    second = fit(module, data, callbacks, max_steps=12, max_epochs=-1, ckpt_path=str(tmp_path / "part.ckpt"))
    second.save_checkpoint(tmp_path / "both.ckpt")

    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.ckpt", "both.ckpt"))
    assert a["global_step"] == b["global_step"] == 12
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "batches_seen", "denoiser", "TinyData"):
        same(a[key], b[key], key)
