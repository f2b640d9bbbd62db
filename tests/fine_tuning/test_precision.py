"""Half precision beside float32: the same noise, and results as near as the digits allow."""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from constrained_diffusion.callbacks import DivergedError, DualAscent, FitStatus, PenaltyScheduler
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.fine_tuning.steering import COEFFICIENTS
from constrained_diffusion.objectives import Constraint

STEPS = 6
SINGLE = 2**-20  #: float32 has 2**-24, of which its sums over hundreds of pixels lose some
# Half of what two neighbouring numbers differ by, relative to them: 8 digits of bfloat16's mantissa, 11 of float16's.
ROUNDOFF = {"bf16-mixed": 2**-8, "bf16-true": 2**-8, "16-mixed": 2**-11, "16-true": 2**-11, "64-true": SINGLE}
FACTOR = 4  # over so few layers rounding errors add up to no more; in the gradients about 1 was measured
OVER_STEPS = 6  # and over the steps of a trajectory
FORMULATIONS = ["penalty", "anchored_algorithm1", "conditioned_algorithm1"]


def half_mixed(scale: float = 2.0**10) -> MixedPrecision:
    """float16 with its scaler on a CPU, where Lightning's own `16-mixed` quietly means `bf16-mixed`."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


class Judged(Constraint):
    """g = mean pixel - 0.2 by weights of its own; notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.full((64, 1), 1 / 64), requires_grad=False)
        self.seen: set[torch.dtype] = set()

    def forward(self, clean: Tensor) -> Tensor:
        result = (clean.flatten(1) @ self.weights).squeeze(1) - 0.2  # autocast would round it
        self.seen |= {clean.dtype, result.dtype}
        return result


class Watch(Callback):
    """Notes what each step measured, and the gradients of the first."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.gradients: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.steering.constraints[0].seen.clear()  # it was tried before the module had its precision

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self.gradients:
            named = pl_module.denoiser.network.named_parameters()
            self.gradients = {name: parameter.grad.clone() for name, parameter in named}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append({name: outputs[name].detach() for name in ("loss", "penalty", "slack")})


class Fit(NamedTuple):
    module: ConstrainedDiffusion
    watch: Watch
    start: Tensor  #: the network's weights before, flat
    steering: PenaltyScheduler


@pytest.fixture(scope="module")
def run(tiny_denoiser: Any, tiny_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`run(precision, formulation="penalty")`: a fit, made once."""

    @cache
    def run(precision: str, formulation: str = "penalty", accelerator: str = "cpu") -> Fit:
        module = ConstrainedDiffusion(
            tiny_denoiser(), Judged(), formulation, max_timestep=60, ema_decay=0.8,
            optimizer=partial(torch.optim.SGD, lr=0.02),
        )  # fmt: skip
        start, watch = flat(module.denoiser.network), Watch()
        steering = PenaltyScheduler(initial=0.3, growth_factor=1.5, every_n_steps=2, stop_below=0.0)
        own = precision == "16-mixed" and accelerator == "cpu"
        precise: Any = {"plugins": [half_mixed()]} if own else {"precision": precision}
        trainer = Trainer(
            accelerator=accelerator, devices=1, max_steps=STEPS, callbacks=[watch, steering], logger=False,
            limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            default_root_dir=tmp_path_factory.mktemp("run"), **precise,
        )  # fmt: skip
        trainer.fit(module, datamodule=tiny_data(batch_size=8))
        return Fit(module, watch, start, steering)

    return run


def flat(network: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in network.parameters()])


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("precision", ROUNDOFF)
def test_a_step_agrees_with_single_precision(run: Any, precision: str, formulation: str) -> None:
    (step, *_), (expected, *_) = (run(p, formulation).watch.steps for p in (precision, "32-true"))
    bound = FACTOR * ROUNDOFF[precision]
    for name in ("loss", "penalty", "slack"):
        assert expected[name].abs().min() > 1e-3
        assert error(step[name], expected[name]) < bound, name


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("precision", ROUNDOFF)
def test_gradients_and_trajectories_agree_with_single_precision(run: Any, precision: str, formulation: str) -> None:
    found, expected = run(precision, formulation), run("32-true", formulation)
    bound = FACTOR * ROUNDOFF[precision]
    gradients = [torch.cat([g.flatten() for g in each.watch.gradients.values()]) for each in (found, expected)]
    assert error(*gradients) < bound
    for step, other in zip(found.watch.steps, expected.watch.steps, strict=True):
        for name in ("loss", "penalty", "slack"):
            assert error(step[name], other[name]) < OVER_STEPS * bound, name
    for network in ("ema", "denoiser.network"):
        weights = [flat(each.module.networks.get_submodule(network)) for each in (found, expected)]
        assert error(*weights) < OVER_STEPS * bound
        assert error(expected.start, weights[1]) > 2 * error(*weights)  # they moved much further than they differ
    assert len(found.watch.steps) == STEPS
    assert found.steering.iteration == STEPS  # the scaler left out nothing


@pytest.mark.parametrize("precision", ROUNDOFF)
def test_constraints_and_their_coefficients_are_never_in_half_precision(run: Any, precision: str) -> None:
    module, watch, *_ = run(precision)
    exact = torch.float64 if precision == "64-true" else torch.float32
    network = next(module.denoiser.network.parameters()).dtype
    assert network == {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision, exact)
    assert module.steering.constraints[0].seen == {exact}
    assert {step[name].dtype for step in watch.steps for name in ("penalty", "slack")} == {exact}
    assert {getattr(module.steering, name).dtype for name in COEFFICIENTS} == {exact}
    assert module.denoiser.noise_schedule.alphas_cumprod.dtype == exact
    assert float(module.steering.penalty_coefficient) == pytest.approx(0.3 * 1.5**3, rel=1e-6)  # bfloat16 has 1.016


def test_the_smallest_noise_survives_half_precision(tiny_denoiser: Any) -> None:
    denoiser = tiny_denoiser().to(torch.bfloat16)
    _, sigma = denoiser.noise_schedule.coefficients(torch.tensor([0]), torch.zeros(1, dtype=torch.bfloat16))
    assert float(sigma) == pytest.approx(0.02, rel=0.01)  # sin 0.02; a rounded alpha-bar would be 1


def test_samples_are_single_precision(run: Any) -> None:
    found, expected = (run(p).module.sample([0, 1, 2]) for p in ("bf16-true", "32-true"))
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.02


class Overflow(Callback):
    """Makes the gradients of one step infinite, and notes weights and EMA after each."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.weights: list[tuple[Tensor, Tensor]] = []
        self.seen: list[tuple[float, int]] = []

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == self.at:
            pl_module.denoiser.network.get_parameter("last.bias").grad.fill_(float("inf"))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights.append((flat(pl_module.denoiser.network), flat(pl_module.networks.ema)))
        steering = next(c for c in trainer.callbacks if isinstance(c, PenaltyScheduler | DualAscent))  # type: ignore[attr-defined]
        self.seen.append((float(pl_module.steering.penalty_coefficient), getattr(steering, "iteration", -1)))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_the_scaler_leaves_out_is_none(
    tiny_denoiser: Any, tiny_data: Any, fit: Any, accumulate: int
) -> None:
    """Neither weights nor EMA move, and the penalty's schedule does not count it; the scale is halved."""
    module = ConstrainedDiffusion(tiny_denoiser(), Judged(), "penalty", ema_decay=0.8)
    steering, overflow, precision = PenaltyScheduler(growth_factor=2.0, every_n_steps=1), Overflow(at=2), half_mixed()
    trainer = fit(
        module, tiny_data(val_samples=0), [steering, overflow], max_steps=5, max_epochs=-1, plugins=[precision],
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    after = overflow.weights[accumulate - 1 :: accumulate]
    moved = [[bool((a != b).any()) for a, b in zip(one, two, strict=True)] for one, two in pairwise(after)]
    assert moved == [[True, True], [False, False], [True, True], [True, True]]
    assert [count for _, count in overflow.seen[accumulate - 1 :: accumulate]] == [1, 2, 2, 3, 4]
    assert steering.steps == trainer.global_step == 5  # Lightning counts it, and so do logs and learning rates
    assert precision.scaler is not None
    assert precision.scaler.get_scale() == 2.0**9


def test_a_skipped_step_ends_the_work_on_its_batch(tiny_denoiser: Any, tiny_data: Any, fit: Any) -> None:
    module = ConstrainedDiffusion(tiny_denoiser(), Judged(), "penalty")
    steering = PenaltyScheduler(growth_factor=2.0, every_n_steps=1, max_iterations=4, stop_below=0.0, scope="batch")
    overflow = Overflow(at=2)
    fit(module, tiny_data(val_samples=0), [steering, overflow], max_steps=6, plugins=[half_mixed()])
    assert [count for _, count in overflow.seen] == [1, 2, 0, 1, 2, 3]


def test_the_scaler_finds_its_scale(tiny_denoiser: Any, tiny_data: Any, fit: Any) -> None:
    """From a scale that is much too large; multipliers grow by the steps that are made."""
    module = ConstrainedDiffusion(tiny_denoiser(), Judged(), "penalty")
    dual, precision = DualAscent(), half_mixed(2.0**24)
    fit(module, tiny_data(val_samples=0), [dual, FitStatus()], max_steps=16, max_epochs=-1, plugins=[precision])
    assert precision.scaler is not None
    skipped = 24 - torch.tensor(precision.scaler.get_scale()).log2()
    assert 2 <= skipped <= 14
    assert bool(torch.isfinite(flat(module.denoiser.network)).all())
    assert 0 < float(module.steering.multiplier) < 1


def test_a_network_that_overflows_in_float16_has_diverged(tiny_denoiser: Any, tiny_data: Any, fit: Any) -> None:
    """No other scale would help: the loss itself is not finite. The scaler keeps the weights."""
    module = ConstrainedDiffusion(tiny_denoiser(), Judged(), "penalty")
    with torch.no_grad():
        module.denoiser.network.first.weight.mul_(1e5)
    before = flat(module.denoiser.network)
    with pytest.raises(DivergedError, match=r"the loss is (inf|nan) at step 1"):
        fit(module, tiny_data(val_samples=0), [FitStatus()], plugins=[half_mixed()])
    assert torch.equal(flat(module.denoiser.network), before)
    fit(module, tiny_data(val_samples=0), [FitStatus()], max_steps=1)  # in float32 it does not overflow


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_on_a_gpu(run: Any, precision: str) -> None:
    """Lightning's own float16 with its scaler, which starts so high that it leaves out some steps."""
    one, other = (run(p, accelerator="gpu").watch.steps[0]["penalty"] for p in (precision, "32-true"))
    assert error(one, other) < FACTOR * ROUNDOFF[precision]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_average_reaches_weights_that_moved_a_little(tiny_denoiser: Any, dtype: torch.dtype) -> None:
    """In half precision a fiftieth of 3 % would be rounded away at every step."""
    module = ConstrainedDiffusion(tiny_denoiser(), ema_decay=0.98).to(dtype)
    with torch.no_grad():
        for parameter in module.denoiser.network.parameters():
            parameter.mul_(1.03)
    for _ in range(500):
        module.networks.update_ema()
    for average, trained in zip(module.networks.ema.parameters(), module.denoiser.network.parameters(), strict=True):
        assert average.dtype == torch.float32
        torch.testing.assert_close(average, trained.float(), rtol=1e-4, atol=1e-6)
