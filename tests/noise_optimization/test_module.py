"""`Trainer.predict` with a tiny denoiser: what is returned, and what lies on disk; after a kill: test_module_killed."""

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

from constrained_diffusion.batch import Seeds
from constrained_diffusion.callbacks import NoiseProgress, NoiseReport, NoiseResults
from constrained_diffusion.datamodules import SeedsDataModule
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.noise_optimization.gradients import Hybrid2
from constrained_diffusion.noise_optimization.jobs import as_jobs
from constrained_diffusion.noise_optimization.module import DirectNoiseOptimization
from constrained_diffusion.objectives import Reward
from constrained_diffusion.reports.noise_rows import read_results

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
    assert not (run / "unfinished").exists()


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


def test_a_k_that_does_not_divide_the_noise_is_refused_when_the_module_is_made(module: Any) -> None:
    noise = module().noise([0])[0].numel()
    wrong = next(k for k in range(2, noise) if noise % k)
    with pytest.raises(ValueError, match=f"k must divide the number of noise variables of a sample, {noise}, but got"):
        module(k=wrong)


def test_no_weight_is_changed(module: Any, predict: Any) -> None:
    one = module()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    predict(one)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert all(parameter.grad is None for parameter in one.parameters())


def test_jobs_of_seeds_are_named_by_them() -> None:
    assert [job.key for job in as_jobs(Seeds(torch.tensor([3, 12])))] == ["seed-000003", "seed-000012"]


# ---------------------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("kind", ["shard", "samples", "again"])  # the last: after a kill between two rows
def test_two_ranks_find_what_one_finds(tmp_path: Path, kind: str, run_program: Any) -> None:
    program = Path(__file__).with_name("predict_ranks.py")
    run_program(program, tmp_path / "two", kind)
    runpy.run_path(str(program))["predict"](tmp_path / "one", False, 1)
    alone, together = read_results(tmp_path / "one"), read_results(tmp_path / "two")
    assert [row["key"] for row in together] == [f"seed-{i:06d}" for i in range(4)]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["rewards"] == pytest.approx(theirs["rewards"], abs=1e-5)
        assert ours["rewards"][-1] > ours["rewards"][0]
    assert [path.name for path in (tmp_path / "two").glob("results*.jsonl*")] == ["results.jsonl"]
    assert [row["key"] for row in rows(tmp_path / "two")] == [row["key"] for row in together]
    figures = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert figures[0] == figures[1]
    assert figures[1]["after"]["n"] == 4


def test_a_rank_waits_for_another_beyond_the_timeout_of_their_process_group(tmp_path: Path, run_program: Any) -> None:
    run_program(Path(__file__).with_name("predict_ranks.py"), tmp_path, "late")
    assert len(rows(tmp_path)) == 4
    assert (tmp_path / "report.html").exists()
