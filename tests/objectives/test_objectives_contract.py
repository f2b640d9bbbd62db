"""What every registered constraint and reward promises; a new one needs one line in `EXAMPLES`."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from constrained_diffusion import domains
from constrained_diffusion.domains.images.aesthetic import LAIONAesthetic
from constrained_diffusion.domains.images.class_probability import ClassProbability
from constrained_diffusion.domains.images.clip_rewards import CLIPScore, HPSv2, PickScore
from constrained_diffusion.domains.images.jpeg import JPEGCompressibility
from constrained_diffusion.domains.images.log_odds import LogOdds
from constrained_diffusion.domains.images.pixels import Brightness, Darkness, Ink
from constrained_diffusion.domains.mazes.continuity import Continuity
from constrained_diffusion.domains.mazes.forbidden_zones import ForbiddenZones
from constrained_diffusion.domains.mazes.goal import NearGoal
from constrained_diffusion.domains.mazes.walls import Walls
from constrained_diffusion.domains.polymers.merit import BradleyTerryMerit
from constrained_diffusion.domains.polymers.preferences.model import MeritCNN
from constrained_diffusion.fine_tuning.divergence import KLFromPretrained
from constrained_diffusion.objectives import (
    Constraint,
    Feasibility,
    Objective,
    Reward,
    RewardAtLeast,
    StepRecord,
    available,
    get,
)
from constrained_diffusion.objectives.converters import WeightedSum

IMPORTED = domains.load()  # importing them registers what they hold
PROMPTS = ("a cab", "a", "bb", "ac ab", "c", "b b b")
ROWS = len(PROMPTS)
WEIGHTS: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A tiny random CLIP and aesthetic head on disk, those of the rewards' own tests."""
    path = Path(__file__).parents[1] / "domains" / "images" / "conftest.py"
    spec = importlib.util.spec_from_file_location("rewards_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    components: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(components)
    folder = tmp_path_factory.mktemp("weights")
    WEIGHTS["clip"] = str(components.write_clip(folder / "clip"))
    WEIGHTS["head"] = str(components.write_head(folder / "head.safetensors"))


class ThirdHalves(Constraint):
    """Three inequalities: no third of the image may be brighter than a half."""

    def forward(self, clean: Tensor) -> Tensor:
        return torch.stack([part.flatten(1).mean(1) for part in clean.chunk(3, dim=-1)], dim=1) - 0.5


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.SiLU(), nn.Linear(8, 4))


def merits() -> nn.Module:
    torch.manual_seed(0)
    return MeritCNN(["C", "N", "O"], width=6, depth=1, kernel=3)


class Example(NamedTuple):
    """One way to make an objective, and samples that it can judge, as a function of seed and dtype."""

    make: Callable[[], Objective]
    shape: tuple[int, ...] = (1, 6, 6)

    def samples(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        return torch.rand(ROWS, *self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
            dtype
        )


STRAIGHT_THROUGH = {"BradleyTerryMerit"}  #: piecewise constant; what their gradient is, their own tests say
EXAMPLES = {
    "ClassProbability": Example(lambda: ClassProbability(classifier(), label=1, threshold=0.1)),
    "KLFromPretrained": Example(lambda: KLFromPretrained(0.1)),
    "ForbiddenZones": Example(lambda: ForbiddenZones("open", [[0.2, 0.3], [0.9, 0.8]], margin=0.05), shape=(2, 3, 4)),
    "Walls": Example(lambda: Walls("medium", reduction="worst"), shape=(2, 3, 2)),
    "Continuity": Example(lambda: Continuity(0.5, 0.5, 0.5), shape=(4, 3, 2)),
    "RewardAtLeast": Example(lambda: RewardAtLeast(Ink(), threshold=0.5)),
    "Feasibility": Example(lambda: Feasibility(ThirdHalves(tolerance=-0.2))),
    "BradleyTerryMerit": Example(lambda: BradleyTerryMerit(merits()), shape=(4, 6)),
    "Brightness": Example(Brightness),
    "Darkness": Example(Darkness, shape=(5,)),
    "Ink": Example(lambda: Ink(target=0.2)),
    "NearGoal": Example(lambda: NearGoal([0.5, 0.25], "open"), shape=(2, 3, 4)),
    "JPEGCompressibility": Example(JPEGCompressibility, shape=(3, 20, 24)),
    "LogOdds": Example(lambda: LogOdds(classifier(), label=1)),
    "WeightedSum": Example(lambda: WeightedSum([CLIPScore(WEIGHTS["clip"]), Ink()], [0.1, 2.0]), shape=(3, 10, 12)),
    "CLIPScore": Example(lambda: CLIPScore(WEIGHTS["clip"]), shape=(3, 10, 12)),
    "PickScore": Example(lambda: PickScore(WEIGHTS["clip"]), shape=(3, 8, 8)),
    "HPSv2": Example(lambda: HPSv2(WEIGHTS["clip"]), shape=(3, 7, 6)),
    "LAIONAesthetic": Example(lambda: LAIONAesthetic(WEIGHTS["head"], WEIGHTS["clip"]), shape=(3, 10, 12)),
}
DTYPES = (torch.float32, torch.float64)
each = pytest.mark.parametrize("name", sorted(EXAMPLES))


def make(name: str, dtype: torch.dtype = torch.float32) -> Objective:
    return EXAMPLES[name].make().to(dtype)


def judge(objective: Objective, samples: Tensor, prompts: Sequence[str] = PROMPTS) -> Tensor:
    if isinstance(objective, Constraint) and objective.needs_step_record:
        steps = torch.zeros(len(samples), dtype=torch.long)
        return objective(StepRecord(samples, samples, steps, samples, samples, torch.zeros_like(samples)))
    needs_prompts = isinstance(objective, Reward) and objective.needs_prompts
    values: Tensor = objective(samples, prompts) if needs_prompts else objective(samples)
    return values


def test_every_registered_objective_has_an_example() -> None:
    ours = {name for name in available() if get(name).__module__.startswith("constrained_diffusion.")}
    assert set(EXAMPLES) == ours


@each
def test_the_name_stands_for_the_class(name: str) -> None:
    assert type(make(name)) is get(name)
    assert issubclass(get(name), Constraint) != issubclass(get(name), Reward)


@each
@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_dtype_and_finite_values(name: str, dtype: torch.dtype) -> None:
    values = judge(make(name, dtype), EXAMPLES[name].samples(dtype))
    assert values.shape[0] == ROWS
    assert values.ndim == 1 or (values.ndim == 2 and isinstance(make(name), Constraint))
    assert values.dtype == dtype
    assert bool(values.isfinite().all())
    assert values.std() > 0  # it looks at the samples


@each
def test_single_and_double_precision_agree(name: str) -> None:
    single, double = (judge(make(name, dtype), EXAMPLES[name].samples(dtype)) for dtype in DTYPES)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@each
def test_rows_are_independent(name: str) -> None:
    objective, samples = make(name), EXAMPLES[name].samples()
    whole = judge(objective, samples)
    alone = [judge(objective, row[None], [prompt]) for row, prompt in zip(samples, PROMPTS, strict=True)]
    torch.testing.assert_close(torch.cat(alone), whole)
    torch.testing.assert_close(judge(objective, samples.flip(0), PROMPTS[::-1]), whole.flip(0))
    changed = samples.clone()
    changed[0] = EXAMPLES[name].samples(seed=1)[0]
    torch.testing.assert_close(judge(objective, changed)[1:], whole[1:])


@each
def test_the_same_samples_give_the_same_values_whatever_the_mode(name: str) -> None:
    objective, samples = make(name), EXAMPLES[name].samples()
    before = samples.clone()
    torch.testing.assert_close(judge(objective.train(), samples), judge(objective.eval(), samples))
    assert torch.equal(samples, before)


@each
def test_the_gradient_where_promised(name: str) -> None:
    objective, samples = make(name, torch.float64), EXAMPLES[name].samples(torch.float64)
    assert isinstance(objective.differentiable, bool)
    if not objective.differentiable:
        pytest.skip("promises no gradient")
    samples.requires_grad_(True)
    (gradient,) = torch.autograd.grad(judge(objective, samples).sum(), samples)
    assert bool(gradient.isfinite().all())
    assert gradient.abs().max() > 0
    if name not in STRAIGHT_THROUGH:
        assert torch.autograd.gradcheck(lambda clean: judge(objective, clean), (samples,), fast_mode=True)


@each
def test_nothing_of_it_is_trained_by_a_gradient_on_samples(name: str) -> None:
    objective, samples = make(name), EXAMPLES[name].samples().requires_grad_(True)
    before = copy.deepcopy(objective.state_dict())
    if objective.differentiable:
        judge(objective, samples).sum().backward()
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())


@each
def test_data_that_it_can_judge_pass_its_check(name: str) -> None:
    objective = make(name)
    if not isinstance(objective, Constraint):
        pytest.skip("only constraints check their data")
    objective.check_data(EXAMPLES[name].shape)
    assert isinstance(objective.tolerance, float)
    assert isinstance(objective.needs_step_record, bool)
    assert isinstance(objective.in_expectation, bool)
