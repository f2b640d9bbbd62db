"""Prompts x seeds: the jobs of a list and of a file, over ranks, without what is done, and what is refused."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from torch import distributed

from constrained_diffusion.datamodules import PromptsDataModule
from constrained_diffusion.noise_optimization.jobs import Job

LINES = """
{"prompt": "a white duck", "seed": 7, "category": "animals"}

"a black cat"
{"prompt": "Katze, schwarz/weiß", "seeds": [2, 0]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text(LINES, encoding="utf-8")
    return tmp_path / "prompts.jsonl"


def batches(data: PromptsDataModule) -> list[list[Job]]:
    return list(data.predict_dataloader())


def test_every_prompt_is_drawn_with_every_seed() -> None:
    data = PromptsDataModule(["a", "b"], seeds=2)
    assert data.jobs == [("00000-0", "a", 0), ("00000-1", "a", 1), ("00001-0", "b", 0), ("00001-1", "b", 1)]
    assert [job.seed for job in PromptsDataModule(["a"], seeds=[9, 4]).jobs] == [9, 4]


def test_a_file_may_give_seeds_of_its_own(file: Path) -> None:
    jobs = PromptsDataModule(prompt_file=str(file), seeds=[5, 6]).jobs
    assert [job.key for job in jobs] == ["00000-7", "00001-5", "00001-6", "00002-2", "00002-0"]
    assert [job.prompt for job in jobs][2:4] == ["a black cat", "Katze, schwarz/weiß"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(file: Path) -> None:
    expected = PromptsDataModule(prompt_file=str(file)).jobs
    file.write_text(LINES.strip(), encoding="utf-8-sig")
    assert PromptsDataModule(prompt_file=str(file)).jobs == expected


def test_a_line_ends_at_a_line_feed_alone(file: Path) -> None:
    prompts = ["a\u2028b", "c\u0085d\x0b"]
    text = json.dumps(prompts[0], ensure_ascii=False) + "\r\n" + json.dumps(prompts[1], ensure_ascii=False)
    file.write_bytes(text.encode())
    assert [job.prompt for job in PromptsDataModule(prompt_file=str(file)).jobs] == prompts


def test_batches_are_lists_of_jobs_in_order() -> None:
    data = PromptsDataModule(["a", "b", "c"], seeds=3, batch_size=4)
    assert [len(batch) for batch in batches(data)] == [4, 4, 1]
    assert list(chain(*batches(data))) == data.jobs
    assert all(isinstance(job, Job) for job in chain(*batches(data)))


@pytest.mark.parametrize("world", [2, 3, 8])
def test_each_job_is_on_exactly_one_rank(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    data = PromptsDataModule(["a", "b", "c"], seeds=2, batch_size=2)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        shares.append(list(chain(*batches(data))))
    assert sorted(chain(*shares)) == data.jobs
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Watch(LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[Job]] = []

    def predict_step(self, batch: list[Job], batch_idx: int) -> list[Job]:
        self.seen.append(batch)
        return batch


def test_the_trainer_hands_the_jobs_over_as_they_are(tmp_path: Path) -> None:
    module, data = Watch(), PromptsDataModule(["a", "b"], seeds=2, batch_size=2)
    quiet = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    Trainer(accelerator="cpu", **quiet).predict(module, datamodule=data, return_predictions=False)
    assert list(chain(*module.seen)) == data.jobs
    assert all(isinstance(job, Job) for job in chain(*module.seen))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("line", "came"),
    [
        ("a white duck", r"got 'a white duck' \(Expecting value\)"),
        ('{"prompt": "a white', r"got '\{\"prompt\": \"a white' \(Unterminated string"),
        ('{"text": "a white duck"}', "got \"{'text': 'a white duck'}\""),
        ('{"prompt": 3}', "got \"{'prompt': 3}\""),
        ('["a", "b"]', "got .*'a', 'b'"),
        ('"  "', "got '  '"),
        ('{"prompt": "a", "seed": 1, "seeds": [2]}', "got .*'seeds'"),
    ],
)
def test_a_broken_line_is_named_with_what_was_expected(tmp_path: Path, line: str, came: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'"a"\n\n{line}\n')
    with pytest.raises(ValueError, match=rf"p.jsonl, line 3: expected a JSON string, or an object like .*, {came}"):
        PromptsDataModule(prompt_file=str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    "fields",
    [{"seed": "7"}, {"seed": None}, {"seed": -1}, {"seed": True}, {"seeds": []}, {"seeds": 3}, {"seeds": [1.5]}],
)
def test_broken_seeds_are_named(tmp_path: Path, fields: Any) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a", **fields}))
    with pytest.raises(ValueError, match="p.jsonl, line 1: expected seeds as a list of integers >= 0, .*, got"):
        PromptsDataModule(prompt_file=str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected either prompts or prompt_file, got neither"),
        ({"prompts": ["a"], "prompt_file": "p.jsonl"}, "expected either prompts or prompt_file, got both"),
        ({"prompts": []}, "there is no prompt in prompts: expected at least one"),
        ({"prompts": ["a", " "]}, r"prompts\[1\]: expected .*, got ' '"),
        ({"prompts": ["a", "b", "a"]}, r"'a' comes twice with seed 0 \(prompts\[0\], and prompts\[2\]\)"),
        ({"prompts": ["a"], "seeds": [1, 1]}, "'a' comes twice with seed 1"),
        ({"prompts": ["a"], "seeds": 0}, "seeds: expected seeds as a list of integers >= 0, at least one"),
        ({"prompts": ["a"], "seeds": [-2]}, r"seeds: expected .*, got \[-2\]"),
        ({"prompts": ["a"], "batch_size": 0}, "expects batch_size >= 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptsDataModule(**settings)


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with pytest.raises(
        FileNotFoundError, match=r"there is no prompt file '.*p.jsonl': expected a file with a JSON string"
    ):
        PromptsDataModule(prompt_file=str(path))
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"there is no prompt in .*p.jsonl: expected at least one"):
        PromptsDataModule(prompt_file=str(path))
    path.write_bytes(b'"\xff"')
    with pytest.raises(ValueError, match="p.jsonl' is no UTF-8 text"):
        PromptsDataModule(prompt_file=str(path))
    path.write_text('"a"\n"b"\n{"prompt": "a", "seed": 0}\n')
    with pytest.raises(ValueError, match=r"'a' comes twice with seed 0 \(.*, line 1, and .*, line 3\)"):
        PromptsDataModule(prompt_file=str(path))


def test_prompts_and_seeds_name_no_files_elsewhere(tmp_path: Path) -> None:
    data = PromptsDataModule(["../../x", "/etc/passwd", "a\0b"], seeds=[0, 2**63 - 1])
    assert {job.key for job in data.jobs} == {f"0000{i}-{seed}" for i in range(3) for seed in (0, 2**63 - 1)}
    with pytest.raises(ValueError, match="expected seeds below 2\\^63, got one of 301 digits"):
        PromptsDataModule(["a"], seeds=[10**300])
    (tmp_path / "p.jsonl").write_text('{"prompt": "\\ud800"}')
    with pytest.raises(ValueError, match="line 1: the prompt .* holds half of a letter"):
        PromptsDataModule(prompt_file=str(tmp_path / "p.jsonl"))
