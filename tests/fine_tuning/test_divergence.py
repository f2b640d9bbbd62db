"""KL(pretrained || model) <= kappa: torch's own KL, its penalty and gradient, and every controller holding to it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from constrained_diffusion.batch import NoisyBatch
from constrained_diffusion.callbacks import (
    AugmentedLagrangian,
    DualAscent,
    FeasibilityGrowth,
    FixedPenalty,
    NuPI,
    PenaltyScheduler,
)
from constrained_diffusion.fine_tuning.divergence import KLFromPretrained
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.objectives import Constraint, StepRecord

KAPPA = 2e-3
CONTROLLERS = {
    "FixedPenalty": lambda: FixedPenalty(3.0),
    "PenaltyScheduler": lambda: PenaltyScheduler(3.0, 1.2, 10, 100, stop_below=1e-3),
    "FeasibilityGrowth": lambda: FeasibilityGrowth(1.0, 1.3, 10, stop_below=1e-3),
    "DualAscent": lambda: DualAscent(partial(torch.optim.SGD, lr=0.1)),
    "NuPI": lambda: NuPI(0.1),
    "AugmentedLagrangian": lambda: AugmentedLagrangian(),
}


def record(own: Tensor, frozen: Tensor | None) -> StepRecord:
    return StepRecord(own, own, torch.zeros(len(own), dtype=torch.long), own, own, frozen)


def kl(own: Tensor, frozen: Tensor) -> Tensor:
    """Torch's KL(N(frozen, 1) || N(own, 1)) per dimension, `(B,)`."""
    dimensions = own[0].numel()
    wide = [Independent(Normal(mean, torch.ones_like(mean)), mean.ndim - 1) for mean in (frozen, own)]
    return kl_divergence(*wide) / dimensions


def test_g_is_torchs_kl_over_kappa_less_one() -> None:
    own, frozen = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(KLFromPretrained(0.3)(record(own, frozen)), kl(own, frozen) / 0.3 - 1)
    assert KLFromPretrained(0.3)(record(own, own)).tolist() == [-1.0] * 5


def test_half_precision_is_left_before_the_difference() -> None:
    own = torch.full((1, 1, 2, 2), 1.0, dtype=torch.bfloat16)
    value = KLFromPretrained(1e-4)(record(own, own - 0.0078125))
    torch.testing.assert_close(value, torch.tensor([0.0078125**2 / 2e-4 - 1]))


@pytest.mark.parametrize("kappa", [0.0, -1.0, float("inf"), float("nan")])
def test_kappa_must_be_positive(kappa: float) -> None:
    with pytest.raises(ValueError, match="expects a positive kappa, in nats per dimension, got"):
        KLFromPretrained(kappa)


def test_without_a_pretrained_model_it_says_so() -> None:
    with pytest.raises(ValueError, match="the step has none; take ConstrainedDiffusion"):
        KLFromPretrained(0.1)(record(torch.zeros(2, 3), None))


class Guarded:
    """A tiny model that has moved, a step's record of it, and the KL of both by torch."""

    def __init__(self, denoiser: Any, kappa: float, others: list[Constraint] | None = None) -> None:
        self.module = ConstrainedDiffusion(denoiser, [*(others or []), KLFromPretrained(kappa)], "penalty")
        generator = torch.Generator().manual_seed(1)
        self.own = torch.randn(6, 1, 8, 8, generator=generator, requires_grad=True)
        self.frozen = self.own.detach() + 0.3 * torch.randn(6, 1, 8, 8, generator=generator)
        self.mean = kl(self.own, self.frozen).mean() / kappa - 1

    def measured(self) -> Any:
        step = StepRecord(self.own, self.own, torch.zeros(6, dtype=torch.long), self.own, self.own, self.frozen)
        return self.module.loss.penalty(step, torch.ones(6))


@pytest.mark.parametrize("kappa", [1e-2, 1.0])  # above and within
def test_the_penalty_is_that_of_the_mean(tiny_denoiser: Any, kappa: float) -> None:
    guarded = Guarded(tiny_denoiser(), kappa)
    measured, expected = guarded.measured(), torch.relu(guarded.mean).square()
    torch.testing.assert_close(measured.penalty, expected.detach()[None])
    torch.testing.assert_close(measured.loss, expected)
    assert measured.violation_rate.tolist() == [float(guarded.mean > 0)]
    ours, theirs = (torch.autograd.grad(loss, guarded.own)[0] for loss in (measured.loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_beside_a_constraint_on_rows_each_has_its_own(tiny_denoiser: Any, too_bright: Any) -> None:
    guarded = Guarded(tiny_denoiser(), 1e-2, [too_bright(tolerance=-0.5)])
    measured = guarded.measured()
    rows = torch.relu(guarded.own.flatten(1).mean(1) - 0.4 + 0.5).square().mean()
    expected = rows + torch.relu(guarded.mean).square()
    torch.testing.assert_close(measured.loss, expected)
    ours, theirs = (torch.autograd.grad(loss, guarded.own)[0] for loss in (measured.loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_with_lora_the_same_network_is_the_pretrained_one(tiny_denoiser: Any) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    lora = {"r": 2, "target_modules": ["first", "last"], "init_lora_weights": False}
    denoiser, before = tiny_denoiser(), tiny_denoiser()
    module = ConstrainedDiffusion(denoiser, KLFromPretrained(0.1), lora=lora)
    noisy, steps = torch.randn(3, 1, 8, 8), torch.tensor([1, 50, 90])
    frozen = module.networks.predict_frozen(NoisyBatch(noisy, noisy, noisy, noisy, steps, steps))
    assert not module.networks._frozen  # no second copy
    torch.testing.assert_close(frozen.noise, before.predict(noisy, steps, None).noise)
    assert not torch.allclose(module.denoiser.predict(noisy, steps, None).noise, frozen.noise)


def fitted_kl(module: Any) -> float:
    """The KL of a fitted module, on noisy samples of its own."""
    generator = torch.Generator().manual_seed(2)
    noisy, steps = torch.rand(64, 1, 8, 8, generator=generator), torch.arange(64) % 100
    noise = torch.randn(noisy.shape, generator=generator)
    noisy = module.denoiser.noise_schedule.add_noise(2 * noisy - 1, noise, steps)
    with torch.no_grad():
        networks = (module.denoiser.network, module.networks.pretrained)
        own, frozen = (module.denoiser.predict(noisy, steps, None, network=network).noise for network in networks)
    return kl(own, frozen).mean().item()


@pytest.mark.filterwarnings("ignore:.*KeyedSampler")
@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_controller_holds_to_it(
    name: str, tiny_denoiser: Any, tiny_data: Any, too_bright: Any, fit: Any, tmp_path: Any
) -> None:
    if name == "NuPI":
        pytest.importorskip("cooper", reason="cooper is not installed")
    found = []
    for kappa in (KAPPA, 1e3):
        constraints = [too_bright(tolerance=-0.1), KLFromPretrained(kappa)]
        adam = partial(torch.optim.Adam, lr=3e-3)
        module = ConstrainedDiffusion(tiny_denoiser(), constraints, "penalty", optimizer=adam)
        fit(module, tiny_data(), [CONTROLLERS[name]()], max_epochs=40, limit_val_batches=0)
        found.append(fitted_kl(module))
    assert found[0] < 1.5 * KAPPA
    assert found[1] > 10 * KAPPA  # what it holds back
