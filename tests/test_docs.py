"""The recipes of the docs are run as they stand there."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from constrained_diffusion import objectives
from constrained_diffusion.cli.command import main
from constrained_diffusion.domains.images import ClassEvaluation, PretrainedClassifier
from constrained_diffusion.evaluation import OwnViolations
from constrained_diffusion.fine_tuning.module import ConstrainedDiffusion
from constrained_diffusion.objectives import registry

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
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
    assert float(module.steering.penalty_coefficient) == 16.0
    assert isinstance(module, ConstrainedDiffusion)
    assert isinstance(module.evaluation, OwnViolations)
    beside = ClassEvaluation(PretrainedClassifier("mnist_judge"))  # that of mnist.yaml
    beside.bind([constraint])
    beside.update(torch.rand(2, 1, 28, 28))
    assert (beside.compute()["violation_rate"], beside.compute()["n"]) == (None, 2)
    assert recipes["ToneEvaluation"]().declared()["figures"][0]["label"] == "mean peak"


def test_noise_optimization_in_python(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "noise-optimization.md").read_text(), re.DOTALL)
    names: dict = {"__name__": "recipe"}
    exec(compile(block, "noise-optimization.md", "exec"), names)
    for record in names["records"]:
        assert len(record.rewards) == 6
        assert record.reward > record.rewards[0]
    assert "steps" in capsys.readouterr().out


def test_align_then_distil(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = "--trainer.enable_progress_bar=false"
    commands = re.findall(
        r"^    lightning (.* (?:dno|distil)_mnist.yaml.*)", (DOCS / "noise-optimization.md").read_text(), re.M
    )
    assert len(commands) == 2
    small = {
        "predict": ["--model.init_args.steps=1", "--data.init_args.predict_samples=6"],
        "fit": ["--trainer.max_epochs=1", "--data.init_args.batch_size=2", "--data.init_args.held_out=2"],
    }
    for command in commands:
        verb, *words = command.split()
        main([verb, *words, *small[verb], quiet])
    assert (tmp_path / "runs" / "dno_mnist" / "latest" / "finished").exists()
    last = torch.load(tmp_path / "runs" / "distil_mnist" / "latest" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2


def test_certified_sampling(tmp_path, monkeypatch, capsys, tiny_config):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(tmp_path / "cache"))
    Path("mnist.yaml").write_text(tiny_config.replace("label: 8", "label: 2"))  # a file goes before a shipped config
    page = (DOCS / "certified-sampling.md").read_text()
    commands = re.findall(r"^    lightning (.*)$", page, re.M)
    assert [command.split()[0] for command in commands] == ["fit", "predict"]
    for command in commands:
        main([*command.split(), "--trainer.enable_progress_bar=false"])
    assert "200 of 200 samples satisfy ClassProbability (g <= 0) by their own g" in capsys.readouterr().out
    names: dict = {"__name__": "recipe"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "certified-sampling.md", "exec"), names)
    assert (tmp_path / "samples" / "certificate.json").is_file()
    printed = capsys.readouterr().out
    assert "torch.Size([16, 1, 28, 28])" in printed
    share = float(re.search(r"^accepted (.*)%$", printed, re.M)[1])
    assert abs(share - 39.3) < 3
