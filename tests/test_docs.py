"""The recipes of the docs are run as they stand there."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from constrained_diffusion import objectives
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.setattr(objectives, "_REGISTRY", dict(objectives._REGISTRY))
    names: dict = {"__name__": "recipes"}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "own-constraint.md").read_text(), re.DOTALL):
        exec(compile(block, "own-constraint.md", "exec"), names)
    return names


def test_own_constraint_loss_and_controller(recipes, tiny_denoiser, tiny_data, fit):
    constraint = recipes["InkAtMost"](limit=0.3)
    assert "InkAtMost" in objectives.available(objectives.Constraint)
    torch.testing.assert_close(constraint(torch.full((2, 1, 4, 4), 0.5)), torch.tensor([0.2, 0.2]))
    module = recipes["HuberDiffusion"](
        tiny_denoiser(), constraint, "penalty", optimizer=partial(torch.optim.SGD, lr=0.01)
    )
    trainer = fit(module, tiny_data(), callbacks=[recipes["Doubling"]()], max_epochs=1)
    assert trainer.global_step == 4
    assert float(module.penalty_coefficient) == 16.0
    assert isinstance(module, ConstrainedDiffusion)
