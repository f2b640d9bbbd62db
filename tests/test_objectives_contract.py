"""Every registered constraint and reward keeps the promises of its class; a new one needs an entry here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import constrained_diffusion.constraints  # noqa: F401  (registers)
from constrained_diffusion.constraints import ClassProbability, PretrainedClassifier
from constrained_diffusion.objectives import Constraint, Feasibility, Reward, RewardAtLeast, available, get


class MeanPixel(Reward):
    def forward(self, clean):
        return clean.flatten(1).mean(1)


def make(name):
    """Build one instance, and say which shape it judges."""
    makers = {
        "ClassProbability": lambda: ClassProbability(PretrainedClassifier("mnist_classifier"), label=4),
        "Feasibility": lambda: Feasibility(RewardAtLeast(MeanPixel(), 0.6)),
        "RewardAtLeast": lambda: RewardAtLeast(MeanPixel(), 0.6),
    }
    assert name in makers, f"'{name}' is registered but has no entry in this contract test"
    return makers[name]()


@pytest.fixture(params=available())
def objective(request):
    return make(request.param)


def images(n=3, dtype=torch.float32):
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_finite_values(objective, dtype):
    values = objective.to(dtype)(images(dtype=dtype))
    assert values.shape[0] == 3
    assert values.ndim == 1 or (values.ndim == 2 and isinstance(objective, Constraint))
    assert torch.isfinite(values).all()


def test_gradients_where_promised(objective):
    clean = images().requires_grad_()
    objective(clean).sum().backward()
    assert objective.differentiable
    assert torch.isfinite(clean.grad).all()
    assert clean.grad.abs().sum() > 0


def test_rows_do_not_depend_on_each_other(objective):
    together = objective(images(4))
    alone = torch.cat([objective(row[None]) for row in images(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_every_registered_name_gives_its_class(objective):
    assert type(objective) is get(type(objective).__name__)
    assert isinstance(objective, nn.Module)
