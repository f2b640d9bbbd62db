"""`lightning predict` with the shipped text-to-image configs, on tiny random pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from constrained_diffusion.cli import command

PROMPTS = ["a white duck", "black cat"]


@pytest.mark.parametrize(("config", "kind"), [("dno_sd15", "sd"), ("dno_sdxl", "sdxl")])
def test_the_shipped_configs_optimise_its_images(
    config: str, kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"a white duck"\n{"prompt": "black cat", "seed": 7}\n')
    command.main([
        "predict", "--config", f"{config}.yaml", f"--model.init_args.model.init_args.source={folders[kind]}",
        "--model.init_args.objective=Brightness", "--model.init_args.sampler.steps=2", "--model.init_args.steps=2",
        "--data.init_args.prompts=null", f"--data.init_args.prompt_file={prompts}", "--trainer.precision=32-true",
        "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
    ])  # fmt: skip
    run = tmp_path / "runs" / config / "latest"
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [(row["key"], row["prompt"]) for row in rows] == [
        ("00000-0", PROMPTS[0]), ("00000-1", PROMPTS[0]), ("00001-7", PROMPTS[1])
    ]  # fmt: skip
    assert all(len(row["rewards"]) == 3 and row["rewards"][-1] > row["rewards"][0] for row in rows)
    assert (run / "after" / "00001-7.png").is_file()
    assert (run / "report.html").is_file()
