"""Clipping by the module: the same whatever the precision, also for fused optimisers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

LIMIT = 1e-3  #: of the gradient's norm, far below what it is


class Watched(ConstrainedDiffusion):
    """Notes the norm of the gradient that the optimiser gets."""

    def configure_gradient_clipping(self, *how: Any, **settings: Any) -> None:
        super().configure_gradient_clipping(*how, **settings)
        gradients = [p.grad.flatten() for p in self.trained.parameters() if p.grad is not None]
        self.norms = [*getattr(self, "norms", []), torch.cat(gradients).norm()]


@pytest.fixture
def fitted(tiny_denoiser: Any, tiny_data: Any, fit: Any) -> Any:
    def fitted(fused: bool, **trainer: Any) -> Watched:
        module = Watched(tiny_denoiser(), optimizer=partial(torch.optim.Adam, lr=1e-3, fused=fused))
        fit(module, tiny_data(), gradient_clip_val=LIMIT, max_epochs=1, **trainer)
        return module

    return fitted


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_by_norm(fitted: Any, precision: str, fused: bool) -> None:
    norms = fitted(fused, precision=precision).norms
    assert norms
    torch.testing.assert_close(torch.stack(norms), torch.full((len(norms),), LIMIT), rtol=1e-3, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_clipped_by_value(fitted: Any, fused: bool) -> None:
    module = fitted(fused, precision="bf16-mixed", gradient_clip_algorithm="value")
    count = sum(p.numel() for p in module.trained.parameters())
    assert max(module.norms) <= LIMIT * count**0.5
    assert max(module.norms) > LIMIT


def test_a_fused_optimiser_that_unscales_by_itself_is_refused_before_work(fitted: Any) -> None:
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="leave out fused or trainer.gradient_clip_val, or choose"):
        fitted(True, plugins=[half])
    assert fitted(False, plugins=[half]).norms
