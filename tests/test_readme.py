"""Every command and every block of code in the README is run, the long ones with a reduced budget."""

from __future__ import annotations

import os
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from constrained_diffusion.cli import runs
from constrained_diffusion.cli.command import main

README = (Path(__file__).parent.parent / "README.md").read_text()
FOUND = re.findall(r"^ {4}(lightning [^#\n]*?)\s*(?:#.*)?$|`(lightning [^`]*)`", README, re.MULTILINE)
COMMANDS = sorted({a or b for a, b in FOUND})
QUIET = ["--trainer.enable_progress_bar=false"]
SMALL = {
    "fit": ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--data.init_args.samples=128",
            "--data.init_args.held_out=8", "--data.init_args.val_samples=8"],
    "test": ["--data.init_args.test_samples=16"],
    "predict": ["--data.init_args.predict_samples=4"],
}  # fmt: skip
ORDER = {"fit": 0, "test": 1, "predict": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One working folder for all commands, as a reader would have."""
    return tmp_path_factory.mktemp("readme")


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", sorted(COMMANDS, key=lambda c: ("--ckpt_path" in c, ORDER[c.split()[1]], c)))
def test_command(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(folder / "cache"))
    _, verb, *arguments = command.split()
    small = SMALL[verb]
    if "pretrain" in command:
        if not os.environ.get("CONSTRAINED_DIFFUSION_DATA"):
            pytest.skip("needs MNIST: CONSTRAINED_DIFFUSION_DATA is not set")
        small = ["--trainer.max_steps=2", "--data.init_args.held_out=8"]
    if "dno" in command:
        small = ["--model.init_args.steps=1", *small]
    if "--ckpt_path" in command:
        small = [*small, "--trainer.max_epochs=2"]
    if "maze" in command:
        pytest.importorskip("mujoco", reason="mujoco is not installed: plans are executed in it")
        small = [*small, "--model.init_args.evaluation.executed=1"]
        if verb == "fit":  # about half of the 128 plans pass its filters
            small = [*small, "--data.init_args.batch_size=16"]
    if "_lora" in command:
        pytest.skip("needs the weights of Stable Diffusion; on tiny ones: denoisers/test_text_to_image_configs.py")
    if "polymer" in command:
        pytest.importorskip("rdkit", reason="the extra `polymer` is not installed")
        if verb == "fit":  # about a sixth of the 128 units are preferred enough
            small = [*small, "--data.init_args.batch_size=4"]
    main([verb, *arguments, *small, *QUIET])
    run = runs.latest_run("pretrain/mnist_denoiser" if "pretrain" in command else _config(arguments), folder / "runs")
    written = {
        "fit": "report.html",
        "test": "results.json",
        "predict": "results.jsonl" if "dno" in command else "samples",
    }
    assert (run.path / written[verb]).exists()


def _config(arguments):
    return arguments[arguments.index("--config") + 1].removesuffix(".yaml")


def test_quick_start(tmp_path, monkeypatch):
    """With a tiny random pipeline, a tiny classifier with preprocessing, and a folder of four pictures' sizes."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), add_attention=False,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=1000)).save_pretrained("my-pipeline")
    Path("my-images").mkdir()
    for i in range(20):
        Image.new("RGB", (20 + i, 24), (12 * i, 100, 50)).save(f"my-images/{i:02d}.png")
    project = types.ModuleType("my_project")
    project.classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    project.preprocess = nn.BatchNorm2d(3, affine=False)
    monkeypatch.setitem(sys.modules, "my_project", project)

    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace("val_samples=500", "val_samples=4").replace("max_epochs=10", "max_epochs=1, logger=False")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})

    pipeline = DDPMPipeline.from_pretrained("my-constrained-pipeline")
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3)
