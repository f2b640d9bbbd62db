"""What stands ready when a fit begins: modes, units, the bank."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from constrained_diffusion.diffusion.normalizer import MeasuredNormalizer
from constrained_diffusion.fine_tuning import hooks
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

ADAM = partial(torch.optim.Adam, lr=1e-2)


def test_a_network_that_arrives_in_eval_mode_is_trained_in_train_mode(
    tiny_denoiser: Any, too_bright: Any, fit: Any, tiny_data: Any
) -> None:
    denoiser, modes = tiny_denoiser(), set()
    denoiser.network.eval()

    class Watched(ConstrainedDiffusion):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            networks = self.networks
            modes.add((networks.trained.training, networks.ema.training, networks.pretrained.training))
            return super().training_step(batch, batch_idx)

    fit(Watched(denoiser, too_bright(), optimizer=ADAM), tiny_data(), max_epochs=2)
    assert modes == {(True, False, False)}


def test_the_units_are_the_data_s_in_a_fit_and_the_model_s_own_ever_after(tiny_denoiser: Any, tiny_data: Any) -> None:
    denoiser, data = tiny_denoiser(), tiny_data()
    denoiser.codec = MeasuredNormalizer(1)
    data.moments = lambda: ([0.25], [0.5])
    for stage, expected in (("test", (0.0, 1.0)), ("predict", (0.0, 1.0)), ("fit", (0.25, 0.5))):
        hooks.measure_units(denoiser, data, stage)
        assert (float(denoiser.codec.mean), float(denoiser.codec.std)) == expected


def test_a_fit_looks_at_the_model_on_what_it_will_be_asked_for(
    told_denoiser: Any, told_data: Any, too_bright: Any, fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(hooks, "check_ends", lambda _, told: seen.append(("ends", len(told["class_labels"]))))
    monkeypatch.setattr(
        hooks, "check_reading", lambda _, told, seeds: seen.append(("reading", len(told["class_labels"])))
    )
    fit(ConstrainedDiffusion(told_denoiser(), too_bright(), optimizer=ADAM), told_data(), max_steps=0)
    assert seen == [("ends", 2), ("reading", 8)]


def test_without_constraints_a_conditioned_fit_needs_no_bank(trained: Any) -> None:
    module, trainer = trained(constraints=None, formulation="conditioned_algorithm1", trainer={"max_steps": 1})
    assert hooks.bank(module.networks, module.loss, None) is None
    assert trainer.global_step == 1


def test_a_stage_begins_without_what_an_interrupted_validation_put_together(trained: Any) -> None:
    module, _ = trained(trainer={"max_steps": 0})
    module.networks._full_copy = (module.networks.ema,)
    module.configure_model()
    assert not module.networks._full_copy
