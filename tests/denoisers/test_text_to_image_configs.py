"""`lightning` with the shipped text-to-image configs, on tiny random pipelines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from constrained_diffusion.cli import command

PROMPTS = ["a white duck", "black cat"]


@pytest.mark.parametrize(
    ("config", "kind", "more"),
    [
        ("dno_sd15", "sd", []),
        ("dno_sdxl", "sdxl", []),
        ("dno_sd15", "sd3", []),
        ("dno_sd15", "flux", ["--model.init_args.model.init_args.sample_shape=[4, 8, 8]"]),
    ],
)
def test_the_shipped_configs_optimise_its_images(
    config: str, kind: str, more: list[str], folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"a white duck"\n{"prompt": "black cat", "seed": 7}\n')
    command.main([
        "predict", "--config", f"{config}.yaml", f"--model.init_args.model.init_args.source={folders[kind]}",
        "--model.init_args.objective=Brightness", "--model.init_args.sampler.steps=2", "--model.init_args.steps=2",
        "--data.init_args.prompts=null", f"--data.init_args.prompt_file={prompts}", "--trainer.precision=32-true",
        "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", *more,
    ])  # fmt: skip
    run = tmp_path / "runs" / config / "latest"
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [(row["key"], row["prompt"]) for row in rows] == [
        ("00000-0", PROMPTS[0]), ("00000-1", PROMPTS[0]), ("00001-7", PROMPTS[1])
    ]  # fmt: skip
    assert all(len(row["rewards"]) == 3 and row["rewards"][-1] > row["rewards"][0] for row in rows)
    assert (run / "after" / "00001-7.png").is_file()
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("config", ["sd15_lora", "sdxl_lora", "sd3_lora", "flux_lora"])
def test_the_shipped_configs_train_adapters_that_the_pipeline_takes(
    config: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(tmp_path / "cache"))
    kind = config.removesuffix("_lora").replace("15", "")
    source = "--model.init_args.denoiser.init_args.source"
    words = ["--config", f"{config}.yaml", f"{source}={folders[kind]}", "--model.init_args.sampler.steps=2"]
    if kind == "flux":  # whose transformer does not say the size of a sample
        words.append("--model.init_args.denoiser.init_args.sample_shape=[4, 8, 8]")
    words += [
        "--data.init_args.sampler.steps=2", "--data.init_args.samples=8", "--data.init_args.held_out=2",
        "--data.init_args.batch_size=4", "--data.init_args.val_samples=4", "--data.init_args.test_samples=4",
        "--data.init_args.conditions.init_args.prompts=[a white duck, black cat]", "--trainer.precision=32-true",
        "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false", "--model.init_args.constraints.init_args.threshold=-0.01",
    ]  # fmt: skip
    command.main(["fit", *words])
    command.main(["test", *words])
    run = tmp_path / "runs" / config / "latest"
    adapters = load_file(run / "export" / "pytorch_lora_weights.safetensors")
    assert any(bool(tensor.any()) for name, tensor in adapters.items() if "lora_B" in name)  # 0 before the first step
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folders[kind])
    pipeline.load_lora_weights(run / "export")
    assert pipeline.get_list_adapters()
    assert {file.name for file in (run / "grids" / "asked").iterdir()} == {"000-a-white-duck.png", "001-black-cat.png"}
    results = json.loads((run / "results.json").read_text())
    assert results["before"]["n"] == results["after"]["n"] == 4
    for side in ("before", "after"):  # random weights draw no black pictures
        assert results[side]["constraints"]["RewardAtLeast"]["violation_rate"] == 1.0


def test_seeds_are_asked_for_prompts(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = [
        "predict", "--config", "dno_sd15.yaml", f"--model.init_args.model.init_args.source={folders['sd']}",
        "--model.init_args.objective=Brightness", "--model.init_args.sampler.steps=2", "--model.init_args.steps=1",
        "--trainer.precision=32-true", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu",
        "--data=SeedsDataModule", "--data.init_args.predict_samples=2",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        command.main(given)
    command.main([*given, "--data.init_args.conditions=Prompts", f"--data.init_args.conditions.prompts={PROMPTS}"])
    lines = (tmp_path / "runs" / "dno_sd15" / "latest" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == PROMPTS


def test_a_broken_file_of_prompts_is_told_before_the_model_is_read(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "broken.jsonl").write_text("a duck")
    data = ["--data.init_args.prompts=null", f"--data.init_args.prompt_file={tmp_path / 'broken.jsonl'}"]
    with pytest.raises(SystemExit):
        command.main(
            ["predict", "--config", "dno_sd15.yaml", "--model.init_args.model.init_args.source=nowhere", *data]
        )
    assert "broken.jsonl, line 1: expected a JSON string" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("nowhere", "", "no pretrained denoiser at 'nowhere': expected a zoo name"),
        ("empty", "", "is no diffusers folder: expected a model_index.json"),
        ("weights.safetensors", "", "is a single file in the original layout"),
        ("{schnell}", "guidance_scale=3.5", "this FLUX was distilled without guidance"),
        ("{sd}", "guidance_scale=-1", "guidance_scale must be at least 0, got -1"),
        ("{sd}", "variant=fp16", "none of the variant 'fp16': give variant=None"),
        ("{lame}", "", "has no text_encoder, without which prompts cannot be encoded"),
    ],
)
def test_every_mistake_reaches_the_command_line_as_its_own_sentence(
    source: str, settings: str, said: str, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    save_file({"model.diffusion_model.out.0.weight": torch.ones(1)}, "weights.safetensors")
    if "lame" in source:
        shutil.copytree(folders["sd"], "lame")
        index = json.loads(Path("lame/model_index.json").read_text())
        Path("lame/model_index.json").write_text(json.dumps({**index, "text_encoder": [None, None]}))
    kind = source.strip("{}")
    chosen = source if "{" not in source else "lame" if kind == "lame" else str(folders[kind])
    more = [f"--model.init_args.model.init_args.{settings}"] if settings else []
    with pytest.raises(SystemExit):
        command.main(
            ["predict", "--config", "dno_sd15.yaml", f"--model.init_args.model.init_args.source={chosen}", *more]
        )
    error = capsys.readouterr().err
    assert said in " ".join(error.split())
    assert "does not correspond" not in error
    assert "Traceback" not in error
