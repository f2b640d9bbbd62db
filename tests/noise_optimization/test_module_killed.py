"""`Trainer.predict` after a kill or an error: nothing finished is lost, done twice or taken for something else."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from constrained_diffusion.callbacks import NoiseCallback, NoiseProgress, NoiseReport, NoiseResults
from constrained_diffusion.datamodules import PromptsDataModule, SeedsDataModule
from constrained_diffusion.diffusion.sampler import Sampler
from constrained_diffusion.noise_optimization.module import DirectNoiseOptimization
from constrained_diffusion.objectives import Reward
from constrained_diffusion.reports.noise_rows import read_results

KILLED = (KeyboardInterrupt, SystemExit)


class Bright(Reward):
    def forward(self, clean: Tensor) -> Tensor:
        return clean.flatten(1).mean(1)


class Broken(Bright):
    """No number for the first row at an evaluation, or no gradient for any."""

    def __init__(self, at: int, value: bool) -> None:
        super().__init__()
        self.left, self.value = at, value

    def forward(self, clean: Tensor) -> Tensor:
        bright = super().forward(clean)
        self.left -= 1
        if self.left == 0 and self.value:
            return torch.cat([bright[:1] * torch.nan, bright[1:]])
        return bright + (bright - bright.detach()).sqrt() if self.left == 0 else bright  # the root has none at 0


class Kill(NoiseCallback):
    """Stops the process's work at an evaluation, as a kill would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_evaluation(self, trainer: Any, module: Any, jobs: Any, run: Any, clean: Any) -> None:
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt


class Count(NoiseCallback):
    """Notes which jobs are evaluated, in each evaluation."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def on_batch_begin(self, trainer: Any, module: Any, jobs: Any, run: Any) -> None:
        assert not run.finished

    def on_evaluation(self, trainer: Any, module: Any, jobs: Any, run: Any, clean: Any) -> None:
        self.seen.append([jobs[row].key for row in clean])


@pytest.fixture
def predict(tmp_path: Path, tiny_denoiser: Any) -> Any:
    def run(
        *callbacks: Any, folder: str = "run", objective: Any = None, data: Any = None, **settings: Any
    ) -> list[Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        defaults = {"sampler": Sampler(steps=3, eta=1.0), "steps": 4, "permutations": 5}
        adam = partial(torch.optim.Adam, lr=0.1)
        module = DirectNoiseOptimization(
            tiny_denoiser(), objective or Bright(), **{**defaults, "optimizer": adam, **settings}
        )
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path / folder, callbacks=list(callbacks),
        )  # fmt: skip
        data = data or SeedsDataModule(predict_samples=6, eval_batch_size=4, first_eval_seed=10)
        result: list[Any] = trainer.predict(module, datamodule=data) or []
        return result

    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    file = folder / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def strips(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "strips").iterdir()}


def is_finished(folder: Path) -> bool:
    return (folder / "finished").exists() and not (folder / "unfinished").exists()


# --------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("at", [1, 3, 5, 7, 9])
def test_a_killed_run_goes_on_where_it_was(predict: Any, tmp_path: Path, at: int) -> None:
    predict(NoiseResults(), NoiseReport(), folder="whole")
    with pytest.raises(KILLED):
        predict(NoiseResults(save_every_seconds=0), NoiseReport(), Kill(at))
    assert len(rows(tmp_path / "run")) == (4 if at >= 5 else 0)
    count = Count()
    predict(NoiseResults(), NoiseReport(), NoiseProgress(), count)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert len(count.seen) == 10 - at
    assert is_finished(tmp_path / "run")
    assert len(strips(tmp_path / "whole")) == 6
    assert strips(tmp_path / "run") == strips(tmp_path / "whole")  # from the start on, whichever command drew it


def test_pictures_of_steps_that_a_kill_has_cost_are_drawn_again(predict: Any, tmp_path: Path) -> None:
    predict(NoiseResults(), NoiseReport(), folder="whole")
    with pytest.raises(KILLED):
        predict(NoiseResults(), NoiseReport(), Kill(3))
    frames = tmp_path / "run" / "strips" / "seed-000012"
    assert sorted(path.name for path in frames.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    (frames / "000002.png").rename(frames / "000007.png")  # as of a sample that a slower machine stops sooner
    (frames / "draft.png").write_bytes(b"half a picture")
    predict(NoiseResults(), NoiseReport())
    assert strips(tmp_path / "run") == strips(tmp_path / "whole")


@pytest.mark.parametrize("written", [0, 1, 3])
def test_a_kill_between_the_rows_of_a_batch_costs_no_step(
    predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    predict(NoiseResults(), folder="whole")
    write, done = NoiseResults._write, []

    def killed(self: Any, trainer: Any, module: Any, job: Any, record: Any) -> None:
        if len(done) == written:
            raise KeyboardInterrupt
        write(self, trainer, module, job, record)
        done.append(job.key)

    monkeypatch.setattr(NoiseResults, "_write", killed)
    with pytest.raises(KILLED):
        predict(NoiseResults())
    monkeypatch.undo()
    assert [row["key"] for row in rows(tmp_path / "run")] == done
    count = Count()
    predict(NoiseResults(), NoiseProgress(), count)
    assert {tuple(keys) for keys in count.seen} == {("seed-000014", "seed-000015")}  # the second batch alone
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert is_finished(tmp_path / "run")


def test_a_state_that_a_kill_has_left_of_a_finished_batch_is_removed(predict: Any, tmp_path: Path) -> None:
    with pytest.raises(KILLED):
        predict(NoiseResults(), Kill(5))
    state = (tmp_path / "run" / "unfinished" / "rank0.pt").read_bytes()
    predict(NoiseResults())
    (tmp_path / "run" / "unfinished").mkdir()
    for name in ("rank0.pt", "rank7.pt", "rank0.part"):
        (tmp_path / "run" / "unfinished" / name).write_bytes(state)
    predict(NoiseResults())
    assert is_finished(tmp_path / "run")


def test_a_line_that_a_kill_has_cut_is_done_again(predict: Any, tmp_path: Path) -> None:
    predict(NoiseResults())
    file = tmp_path / "run" / "results.jsonl"
    whole = rows(tmp_path / "run")
    file.write_text(file.read_text()[:-30])
    predict(NoiseResults())
    again = rows(tmp_path / "run")  # each line is JSON
    assert again[:5] == whole[:5]
    assert again[5]["key"] == whole[5]["key"]
    assert again[5]["rewards"] == pytest.approx(whole[5]["rewards"], rel=1e-5)  # alone now, before in a batch of two


@pytest.mark.parametrize("method", ["replace", "unlink"])
def test_a_kill_at_the_end_loses_no_row(
    predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    predict(NoiseResults())
    run = tmp_path / "run"
    whole = rows(run)
    lines = (run / "results.jsonl").read_text().splitlines(keepends=True)
    (run / "results.jsonl").write_text("".join(lines[::2]))  # as two ranks leave them
    (run / "results-rank1.jsonl").write_text("".join(lines[1::2]))

    def killed(self: Path, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, method, killed)
    with pytest.raises(KILLED):
        predict(NoiseResults())
    monkeypatch.undo()
    assert read_results(run) == whole
    predict(NoiseResults())
    assert rows(run) == whole
    assert [path.name for path in run.glob("results*")] == ["results.jsonl"]


# --------------------------------------------------------------------------------------------------- broken and edited


@pytest.mark.parametrize(("value", "said"), [(True, "Broken returned nan for a sample"), (False, "gradient of Broken")])
def test_what_is_finished_stays_when_another_sample_of_the_batch_breaks(
    predict: Any, tmp_path: Path, value: bool, said: str
) -> None:
    [batch, _] = predict(folder="free")
    goal, step, best = max((record.rewards[i], i, row) for row, record in enumerate(batch.records) for i in range(4))
    predict(NoiseResults(), folder="whole", stop_reward=goal)
    for at in (
        step + (3 if value else 2),
        2,
    ):  # a call more than steps, the trial; and the next command, which meets the same
        with pytest.raises(ValueError, match=rf"^seed-0000\d\d \.\. seed-0000\d\d: .*{said}"):
            predict(NoiseResults(), objective=Broken(at, value), stop_reward=goal)
        assert [row["key"] for row in rows(tmp_path / "run")] == [batch.jobs[best].key]
    predict(NoiseResults(), stop_reward=goal)
    for ours, theirs in zip(rows(tmp_path / "run"), rows(tmp_path / "whole"), strict=True):
        assert ours["stopped"] == theirs["stopped"]
        assert ours["rewards"] == pytest.approx(theirs["rewards"], rel=1e-5)  # in smaller batches


@pytest.mark.parametrize("at", [2, 5])
def test_edited_prompts_are_not_taken_for_those_of_before(predict: Any, tmp_path: Path, at: int) -> None:
    file, run = tmp_path / "prompts.jsonl", tmp_path / "run"
    file.write_text('"a duck"\n"a cow"\n')
    data = partial(PromptsDataModule, prompt_file=str(file))
    with pytest.raises(KILLED):
        predict(NoiseResults(save_every_seconds=0), Kill(at), data=data())
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    file.write_text('"a horse"\n"a duck"\n"a cow"\n')
    count = Count()
    said = "holds, as 00000-0, the prompt 'a duck' with seed 0, but now 00000-0 is 'a horse' with seed 0; restore"
    with pytest.raises(ValueError, match=f"{'rank0.pt' if at == 2 else 'run'}' {said}"):
        predict(NoiseResults(), count, data=data())
    assert count.seen == []
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept
    file.write_text('"a duck"\n"a cow"\n"a horse"\n')  # one more at the end is no harm
    predict(NoiseResults(), data=data())
    assert [row["prompt"] for row in rows(run)] == ["a duck", "a cow", "a horse"]


def test_a_later_prompt_that_was_edited_is_refused_before_the_first_is_begun(predict: Any, tmp_path: Path) -> None:
    predict(NoiseResults(), data=PromptsDataModule(["a duck", "a cow"]))
    file, count = tmp_path / "run" / "results.jsonl", Count()
    file.write_text(file.read_text().splitlines()[1] + "\n")  # another rank's, which was the faster one
    with pytest.raises(
        ValueError, match=r"as 00001-0, the prompt 'a cow' .* restore the prompts .* choose another folder"
    ):
        predict(NoiseResults(), count, data=PromptsDataModule(["a duck", "a cat"]))
    assert count.seen == []
