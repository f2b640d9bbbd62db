"""`Trainer.predict` with a tiny denoiser: what is returned, what lies on disk, and going on after a kill."""

from __future__ import annotations

import json
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from constrained_diffusion.callbacks import NoiseCallback, NoiseProgress, NoiseReport, NoiseResults
from constrained_diffusion.callbacks.noise_results import read_results
from constrained_diffusion.datamodules import SeedsDataModule
from constrained_diffusion.noise_optimization.gradients import Hybrid2
from constrained_diffusion.noise_optimization.module import DirectNoiseOptimization, as_jobs
from constrained_diffusion.objectives import Reward
from constrained_diffusion.sampling import Sampler

SAMPLER = Sampler(steps=3, eta=1.0)


class Bright(Reward):
    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1)


class Prompted(Bright):
    needs_prompts = True


class BlackBox(Bright):
    differentiable = False

    def forward(self, clean: Tensor) -> Tensor:
        return super().forward(clean.detach())


class Kill(NoiseCallback):
    """Stops the process's work at an evaluation, as a kill would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_evaluation(self, trainer: Any, module: Any, jobs: Any, run: Any, clean: Any) -> None:
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt


@pytest.fixture
def module(tiny_denoiser: Any) -> Any:
    def make(objective: Any = None, **settings: Any) -> DirectNoiseOptimization:
        defaults = {"sampler": SAMPLER, "steps": 4, "permutations": 5, "optimizer": partial(torch.optim.Adam, lr=0.1)}
        return DirectNoiseOptimization(tiny_denoiser(), objective or Bright(), **{**defaults, **settings})

    return make


@pytest.fixture
def predict(tmp_path: Path) -> Any:
    def run(module: Any, *callbacks: Any, folder: str = "run", samples: int = 6) -> list[Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path / folder, callbacks=list(callbacks),
        )  # fmt: skip
        data = SeedsDataModule(predict_samples=samples, eval_batch_size=4, first_eval_seed=10)
        result: list[Any] = trainer.predict(module, datamodule=data) or []
        return result

    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_seed_gets_a_better_sample_of_its_own(module: Any, predict: Any) -> None:
    both = predict(module())
    assert [[job.seed for job in part.jobs] for part in both] == [[10, 11, 12, 13], [14, 15]]
    records = [record for part in both for record in part.records]
    assert sum(record.reward - record.rewards[0] for record in records) > 0.05
    for part in both:
        for job, record in zip(part.jobs, part.records, strict=True):
            alone = module()
            start = alone.mapping(alone.noise([job.seed]))[0]
            torch.testing.assert_close(record.start, start)
            assert record.reward >= record.rewards[0]
            assert len(record.rewards) == 5
            torch.testing.assert_close(alone.mapping(record.noise[None])[0], record.sample)


def test_results_pictures_and_report(module: Any, predict: Any, tmp_path: Path, capsys: Any) -> None:
    predict(module(), NoiseResults(), NoiseReport(), NoiseProgress())
    run = tmp_path / "run"
    found = rows(run)
    assert [row["seed"] for row in found] == list(range(10, 16))
    assert all(row["reward"] == max(row["rewards"]) for row in found if row["probability"] >= 0.01)
    for row in found:
        kept = load_file(run / "noise" / f"{row['key']}.safetensors")
        for folder, name in (("before", "before"), ("after", "sample")):
            with Image.open(run / folder / f"{row['key']}.png") as image:
                assert image.size == (8, 8)
            assert kept[name].shape == (1, 8, 8)
        assert kept["sample"].mean() == pytest.approx(row["reward"], abs=1e-5)
    page = (run / "report.html").read_text()
    assert all(row["key"] in page for row in found)
    assert page.count("<svg") == 2
    assert page.count("data:image/png") == 6
    said = capsys.readouterr().out
    assert "6 samples: mean reward" in said
    assert "P(z)" in said
    assert list((run / "unfinished").iterdir()) == []


@pytest.mark.parametrize("at", [1, 3, 5, 7, 9])
def test_a_killed_run_goes_on_where_it_was(module: Any, predict: Any, tmp_path: Path, at: int) -> None:
    predict(module(), NoiseResults(), folder="whole")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predict(module(), NoiseResults(save_every_seconds=0), Kill(at))
    done = {row["key"]: row for row in rows(tmp_path / "run")} if (tmp_path / "run" / "results.jsonl").exists() else {}
    assert len(done) == (4 if at > 5 else 0)
    counted: list[int] = []

    class Count(NoiseCallback):
        def on_evaluation(self, trainer: Any, module: Any, jobs: Any, run: Any, clean: Any) -> None:
            counted.append(run.evaluations)

    predict(module(), NoiseResults(), Count())
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    lost = {1: 0, 3: 0, 5: 1, 7: 0, 9: 0}[at]  # the state of a batch's last evaluation is not written
    assert len(counted) == 10 - at + lost
    assert [p.name for p in (tmp_path / "run" / "unfinished").iterdir()] == []


def test_a_line_that_a_kill_has_cut_is_done_again(module: Any, predict: Any, tmp_path: Path) -> None:
    predict(module(), NoiseResults())
    file = tmp_path / "run" / "results.jsonl"
    whole = rows(tmp_path / "run")
    file.write_text(file.read_text()[:-30])
    predict(module(), NoiseResults())
    lines = file.read_text().splitlines()
    again = [json.loads(line) for line in [*lines[:5], lines[6]]]
    assert again[:5] == whole[:5]
    assert again[5]["key"] == whole[5]["key"]
    assert again[5]["rewards"] == pytest.approx(whole[5]["rewards"], rel=1e-5)  # alone now, before in a batch of two


def test_a_constraint_is_maximised_as_its_feasibility(module: Any, predict: Any, too_bright: Any) -> None:
    constraint = too_bright(tolerance=-0.2)
    [part, _] = predict(module(constraint))
    for record in part.records:
        assert record.reward == pytest.approx(min(0.0, 0.2 - float(record.sample.mean())), abs=1e-5)


def test_black_boxes_need_an_estimator(module: Any, predict: Any) -> None:
    with pytest.raises(TypeError, match="BlackBox is not differentiable, and Exact needs its gradient; choose"):
        module(BlackBox())
    [part, _] = predict(module(BlackBox(), estimator=Hybrid2(perturbations=2)))
    assert all(len(record.rewards) == 5 for record in part.records)


def test_a_reward_of_prompts_needs_a_model_of_prompts(module: Any) -> None:
    with pytest.raises(TypeError, match="Prompted judges how an image fits its prompt, but Denoiser takes none"):
        module(Prompted())


def test_no_weight_is_changed(module: Any, predict: Any) -> None:
    one = module()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    predict(one)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert all(parameter.grad is None for parameter in one.parameters())


def test_jobs_of_seeds_are_named_by_them() -> None:
    assert [job.key for job in as_jobs(torch.tensor([3, 12]))] == ["seed-000003", "seed-000012"]


# ---------------------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("shard", ["shard", "samples"])
def test_two_ranks_find_what_one_finds(tmp_path: Path, shard: str, run_program: Any) -> None:
    program = Path(__file__).with_name("predict_ranks.py")
    run_program(program, tmp_path / "two", shard)
    runpy.run_path(str(program))["predict"](tmp_path / "one", False, 1)
    alone, together = read_results(tmp_path / "one"), read_results(tmp_path / "two")
    assert [row["key"] for row in together] == [f"seed-{i:06d}" for i in range(4)]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["rewards"] == pytest.approx(theirs["rewards"], abs=1e-5)
        assert ours["rewards"][-1] > ours["rewards"][0]
    assert len(list((tmp_path / "two").glob("results*.jsonl"))) == (1 if shard == "shard" else 2)
    figures = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert figures[0] == figures[1]
    assert figures[1]["after"]["n"] == 4
