"""Commands that torchrun starts on two gloo ranks: one run folder, continued, and none after a mistake."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from constrained_diffusion.cli.command import main

RANKS = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
WHERE = """
from pathlib import Path
from lightning.pytorch import Callback

class Where(Callback):
    def setup(self, trainer, pl_module, stage):
        Path(trainer.default_root_dir, f"rank-{trainer.global_rank}").touch()
"""
MARK = """
from pathlib import Path
from lightning.pytorch import Callback

class Mark(Callback):
    def on_train_batch_end(self, *args):
        Path("stepping").touch()
"""
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def start(root: Path, *words: str, ranks: list[str] = RANKS, **pipes: Any) -> subprocess.Popen[str]:
    command = [*LAUNCH, "-m", "constrained_diffusion.cli", *words, *ranks, "--trainer.enable_progress_bar=false"]
    own = {
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "CONSTRAINED_DIFFUSION_RUNS": "runs",
    }
    own["CONSTRAINED_DIFFUSION_CACHE"] = str(root / "cache")
    environment = {**os.environ, **own}
    return subprocess.Popen(command, cwd=root, env=environment, text=True, **pipes)


def torchrun(root: Path, *words: str, ranks: list[str] = RANKS) -> subprocess.CompletedProcess[str]:
    with start(root, *words, ranks=ranks, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def folders(config: Path) -> list[str]:
    return sorted(path.name for path in config.iterdir())


def losses(run: Path) -> list[tuple[int, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["loss/total"])) for row in csv.DictReader(file) if row["loss/total"]]


class Story(NamedTuple):
    """What happened in the working directory, in this order."""

    root: Path
    first: subprocess.CompletedProcess[str]  #: a fit of one epoch, of two steps
    there: list[str]  #: what its run then held
    losses: list[tuple[int, float]]
    continued: subprocess.CompletedProcess[str]  #: `--ckpt_path last`, to the second epoch
    mistaken: subprocess.CompletedProcess[str]  #: a setting that the model refuses


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_config: str) -> Story:
    root = tmp_path_factory.mktemp("torchrun")
    (root / "tiny.yaml").write_text(tiny_config)
    (root / "wrong.yaml").write_text(tiny_config.replace("max_timestep: 80", "max_timestep: 101"))
    (root / "where.py").write_text(WHERE)
    run = root / "runs" / "tiny" / "1"
    one_epoch = ("--trainer.max_epochs=1", "--trainer.callbacks+=where.Where")
    first = torchrun(root, "fit", "--config", "tiny.yaml", *one_epoch)
    assert first.returncode == 0, first.stderr
    there, then = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()], losses(run)
    continued = torchrun(root, "fit", "--config", "tiny.yaml", "--ckpt_path", "last")
    return Story(root, first, there, then, continued, torchrun(root, "fit", "--config", "wrong.yaml"))


def test_all_ranks_share_one_run(story: Story) -> None:
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in story.first.stderr + story.first.stdout
    assert folders(story.root / "runs" / "tiny") == ["1", "latest"]
    assert {"config.yaml", "metrics.csv", "status.json", "report.html", "checkpoints/last.ckpt"} <= set(story.there)
    assert {"rank-0", "rank-1"} <= set(story.there)  # a callback of the config's own, as early as `setup`
    assert story.first.stdout.count("report: ") == 1
    assert {path.name for path in story.root.iterdir()} - {"__pycache__"} == {
        *("cache", "runs", "tiny.yaml", "where.py", "wrong.yaml")
    }


def test_last_goes_on_in_it(story: Story) -> None:
    assert story.continued.returncode == 0, story.continued.stderr
    run = story.root / "runs" / "tiny" / "1"
    assert losses(run)[: len(story.losses)] == story.losses
    assert [step for step, _ in losses(run)] == [0, 1, 2, 3]  # 16 rows, two steps an epoch of 4 rows on each rank
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_mistake_leaves_no_run(story: Story) -> None:
    assert story.mistaken.returncode != 0
    assert "error: max_timestep (T_phi) must be in 1 .. 100" in story.mistaken.stderr
    wrong = story.root / "runs" / "wrong"  # the launcher may have ended the first rank before it could clear up
    assert not [path for path in wrong.rglob("*") if path.name in ("config.yaml", "latest")]


def test_all_ranks_end_with_a_checkpoint_when_told_to(tmp_path: Path, tiny_config: str) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_config)
    (tmp_path / "mark.py").write_text(MARK)
    words = ["--trainer.max_epochs=1000", "--trainer.callbacks+=mark.Mark", "--trainer.check_val_every_n_epoch=1000"]
    with (tmp_path / "said").open("wb") as said:
        process = start(tmp_path, "fit", "--config", "tiny.yaml", *words, stdout=said, stderr=said)
        give_up = time.monotonic() + 120
        while not (tmp_path / "stepping").exists():
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < give_up
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)  # to the launcher, which tells the ranks
        assert process.wait(60) != 0
    text = (tmp_path / "said").read_text()
    last = torch.load(tmp_path / "runs" / "tiny" / "1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert f"SIGTERM ended the fit after step {last['global_step']}" in text
    steps = [step for step, _ in losses(tmp_path / "runs" / "tiny" / "1")]
    assert steps == list(range(len(steps)))
    assert len(steps) >= last["global_step"] - 1  # Lightning logs a step after its checkpoint, which has the row


@pytest.mark.slow
def test_ranks_that_share_out_the_weights_write_what_one_process_reads(
    tmp_path: Path, tiny_config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cluster/fsdp.yaml` with a UNet of diffusers, then `test` without it."""
    (tmp_path / "tiny.yaml").write_text(tiny_config)
    done = torchrun(tmp_path, "fit", "--config", "tiny.yaml", "--config", "cluster/fsdp.yaml", ranks=RANKS[:2])
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny" / "1"
    assert {"export", "report.html", "status.json"} <= set(folders(run))
    assert "strategy: fully_sharded" in (run / "config.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    main(["test", "--config", "tiny.yaml", "--ckpt_path", "last", "--trainer.enable_progress_bar=false"])
    assert json.loads((run / "results.json").read_text())["after"]["n"] == 8
    exported, last = run / "export", torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    weights = load_file(exported / "unet" / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == {
        key.removeprefix("networks.ema.") for key in last["state_dict"] if key.startswith("networks.ema.")
    }
    assert all(torch.equal(value, last["state_dict"][f"networks.ema.{key}"]) for key, value in weights.items())


@pytest.mark.slow
def test_ranks_share_the_seeds_and_the_run_of_a_noise_optimisation(tmp_path: Path) -> None:
    small = ["--model.init_args.steps=1", "--data.init_args.predict_samples=4", "--data.init_args.eval_batch_size=2"]
    done = torchrun(tmp_path, "predict", "--config", "dno_mnist.yaml", *small, "--trainer.precision=32-true")
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "runs" / "dno_mnist"
    assert folders(runs) == ["1", "latest"]
    assert [path.name for path in (runs / "1").glob("results*.jsonl")] == ["results.jsonl"]
    rows = [json.loads(line) for line in (runs / "1" / "results.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 2, 3]
    assert {"finished", "report.html", "config.yaml"} <= set(folders(runs / "1"))
    for kind, ending in (("before", "png"), ("after", "png"), ("noise", "safetensors")):
        assert folders(runs / "1" / kind) == [f"seed-{seed:06d}.{ending}" for seed in range(4)]
