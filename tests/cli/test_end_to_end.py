"""Fit, test, predict and resume through the command line, on a random UNet; what lies on disk afterwards."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from constrained_diffusion.cli import command

FIT = ("fit", "--config", "tiny.yaml")
OTHER = "--model.init_args.constraints.init_args.threshold=0.05"
EPOCHS = "--trainer.max_epochs=4"


class Story(NamedTuple):
    """What happened in the working directory, in this order."""

    root: Path
    first: dict[str, str]  #: run 1 after its fit
    after_second: dict[str, str]  #: run 1 after a second fit, with another threshold
    stopped: list[dict[str, str]]  #: metrics of run 2 when it was stopped
    said: str  #: what `test` of run 3 printed


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_config: str) -> Iterator[Story]:
    root = tmp_path_factory.mktemp("story")
    tiny = root / "runs" / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(root / "cache"))
        patch.delenv("CONSTRAINED_DIFFUSION_RUNS", raising=False)
        Path("tiny.yaml").write_text(tiny_config)
        command.main([*FIT])
        first = hashes(tiny / "1")
        command.main([*FIT, OTHER])
        after_second = hashes(tiny / "1")
        stopped = metrics(tiny / "2")
        command.main([*FIT, OTHER, EPOCHS, "--ckpt_path", "last"])
        command.main([*FIT, OTHER, EPOCHS])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            command.main(["test", "--config", "tiny.yaml"])
        command.main(["predict", "--config", "tiny.yaml"])
        elsewhere = root / "elsewhere"
        elsewhere.mkdir()
        patch.chdir(elsewhere)
        command.main(["predict", "--config", "../tiny.yaml", "--trainer.default_root_dir", "../runs", "--ckpt_path",
                  "../runs/tiny/1/checkpoints/last.ckpt", "--data.init_args.predict_samples=2"])  # fmt: skip
        yield Story(root, first, after_second, stopped, printed.getvalue())


@pytest.fixture(scope="module")
def runs(story: Story) -> dict[int, Path]:
    return {int(path.name): path for path in (story.root / "runs" / "tiny").iterdir() if path.name.isdigit()}


def test_each_fit_has_its_own_folder_and_a_link_shows_the_latest(story: Story, runs: dict[int, Path]) -> None:
    assert sorted(runs) == [1, 2, 3]
    assert (story.root / "runs" / "tiny" / "latest").resolve() == runs[3].resolve()
    assert [path.name for path in (story.root / "elsewhere").iterdir()] == []


def test_a_run_holds_everything(story: Story) -> None:
    names = set(story.first)
    assert names >= {"config.yaml", "metrics.csv", "status.json", "report.html", "checkpoints/last.ckpt"}
    assert names >= {"grids/epoch-000.png", "grids/epoch-001.png", "export/model_index.json", "export/unet/config.json"}
    assert any(name.startswith("tensorboard/events") for name in names)


def test_a_second_fit_leaves_the_first_as_it_was(story: Story) -> None:
    assert story.after_second == story.first


def test_the_config_of_the_run_is_its_own(story: Story, runs: dict[int, Path]) -> None:
    config = [yaml.safe_load((runs[number] / "config.yaml").read_text()) for number in (1, 2, 3)]
    thresholds = [each["model"]["init_args"]["constraints"]["init_args"]["threshold"] for each in config]
    assert thresholds == [0.1, 0.05, 0.05]
    assert config[0]["trainer"]["default_root_dir"] is None  # so that the file can be fitted again
    assert config[0]["trainer"]["max_epochs"] == 2


def test_metrics_go_on_without_gap_or_repeat(story: Story, runs: dict[int, Path]) -> None:
    resumed, whole = metrics(runs[2]), metrics(runs[3])
    assert [float(row["loss/total"]) for row in resumed if row["loss/total"]] == [
        float(row["loss/total"]) for row in whole if row["loss/total"]
    ]
    for rows in (resumed, whole):
        assert [int(row["step"]) for row in rows if row["loss/total"]] == list(range(8))
        assert [int(row["step"]) for row in rows if row["val/diffusion_loss"]] == [1, 3, 5, 7]
    assert resumed[0].keys() == whole[0].keys()
    for key in resumed[0]:
        assert [float(row[key] or "inf") for row in resumed] == [float(row[key] or "inf") for row in whole], key
    assert len(story.stopped) == 6


def test_a_resumed_fit_ends_where_an_uninterrupted_one_does(runs: dict[int, Path]) -> None:
    resumed, whole = (torch.load(runs[number] / "checkpoints" / "last.ckpt", weights_only=True) for number in (2, 3))
    assert resumed["global_step"] == whole["global_step"] == 8
    assert resumed["state_dict"].keys() == whole["state_dict"].keys()
    assert all(torch.equal(value, whole["state_dict"][name]) for name, value in resumed["state_dict"].items())
    exported = [load_file(runs[n] / "export" / "unet" / "diffusion_pytorch_model.safetensors") for n in (2, 3)]
    assert all(torch.equal(value, exported[1][name]) for name, value in exported[0].items())  # not that of epoch 2
    state, prefix = whole["state_dict"], "networks.ema."
    ema = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    assert all(torch.equal(value, ema[name]) for name, value in exported[1].items())


def test_status_and_results(story: Story, runs: dict[int, Path]) -> None:
    status = json.loads((runs[3] / "status.json").read_text())
    assert status["status"] in ("feasible", "infeasible")
    results = json.loads((runs[3] / "results.json").read_text())
    for side in ("before", "after"):
        assert results[side]["n"] == 8
        assert results[side]["metrics"].keys() >= {"class_histogram", "total_variation", "non_digit_rate", "fid", "kid"}
        rates = {"violation_rate", "violation_upper_95", "own_violation_rate", "own_violation_upper_95"}
        assert all(0 <= results[side][key] <= 1 for key in rates)
        assert sum(results[side]["metrics"]["class_histogram"]) == 8
    assert (results["status"], results["cost"]) == (status["status"], status["cost"])
    assert results["subject"] == "eights"
    assert "FID" in {figure["label"] for figure in results["figures"]}
    for side in ("before", "after"):  # one constraint: its own line and that of all are the same
        own = results[side]["constraints"]["ClassProbability"]
        assert (own["violation_rate"], own["n"]) == (results[side]["own_violation_rate"], 8)
    assert results["seconds"]["fit"] > 0
    assert results["seconds"]["test"] > 0
    assert (results["config"], results["seeds"]) == ("tiny", [0, 7])
    assert results["sampler"]["steps"] == 2
    assert torch.__version__.startswith(results["versions"]["torch"])
    hashed = results["weights_sha256"]
    assert len(hashed["before"]) == len(hashed["after"]) == 64
    assert hashed["before"] != hashed["after"]


def test_the_table_is_printed_and_the_report_written(story: Story, runs: dict[int, Path]) -> None:
    assert "before" in story.said
    assert "n = 8 samples each" in story.said
    assert str(runs[3] / "report.html") in story.said
    report = (runs[3] / "report.html").read_text()
    assert "<h2>Before and after</h2>" in report
    assert report.count("data:image/png;base64,") == 6  # before, after, four epochs


def test_predict_writes_samples_of_any_kind(runs: dict[int, Path]) -> None:
    samples = load_file(runs[3] / "samples" / "samples-rank0.safetensors")
    assert samples["samples"].shape == (4, 1, 28, 28)
    assert samples["seeds"].tolist() == [0, 1, 2, 3]
    with Image.open(runs[3] / "samples" / "seed-000002.png") as image:
        pixels = torch.from_numpy(np.array(image)).long()
    assert torch.equal(pixels, (samples["samples"][2, 0].clamp(0, 1) * 255).round().long())


def test_a_checkpoint_of_an_earlier_run_writes_into_that_run(runs: dict[int, Path]) -> None:
    samples = load_file(runs[1] / "samples" / "samples-rank0.safetensors")
    assert samples["seeds"].tolist() == [0, 1]
    assert not (runs[2] / "samples").exists()


def test_diffusers_opens_the_export_and_samples_as_predict_does(runs: dict[int, Path]) -> None:
    from diffusers import DDIMPipeline

    pipeline: Any = DDIMPipeline.from_pretrained(runs[1] / "export")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(batch_size=2, generator=generator, num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 28, 28, 1)
    trained = torch.load(runs[1] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(
        torch.equal(value, trained[f"networks.ema.{name}"]) for name, value in pipeline.unet.state_dict().items()
    )
