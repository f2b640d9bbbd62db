"""Damaged and malicious files, where a user meets them: one sentence, status 2, nothing executed, nothing written.

What goes wrong with them inside is tested in untrusted/; `fuzz.py` tries the rest.
"""

from __future__ import annotations

import os
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from constrained_diffusion.cli import command, runs

REPOSITORY = Path(__file__).parents[2]
QUIET = "--trainer.enable_progress_bar=false"


class Trap:
    """Executed by any unpickling that executes code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def everything(folder: Path) -> dict[str, Any]:
    """What lies below the folder, links as links; not what TensorBoard's logger writes as soon as it is asked."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if "tensorboard" not in path.parts):
        held = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = held
    return found


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_config: str) -> Path:
    """A folder with tiny.yaml and one fit of it."""
    top = tmp_path_factory.mktemp("fitted")
    (top / "tiny.yaml").write_text(tiny_config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        patch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(top / "cache"))
        patch.delenv("CONSTRAINED_DIFFUSION_RUNS", raising=False)
        command.main(["fit", "--config", "tiny.yaml", QUIET, "--trainer.max_epochs=1"])
    return top


@pytest.fixture
def place(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of that, beside a folder `outside` that is nobody's business."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("as it was")
    place = tmp_path / "place"
    runs.shutil.copytree(fitted, place, symlinks=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("CONSTRAINED_DIFFUSION_CACHE", str(place / "cache"))
    monkeypatch.delenv("CONSTRAINED_DIFFUSION_RUNS", raising=False)
    monkeypatch.delenv("CONSTRAINED_DIFFUSION_DEBUG", raising=False)
    return place


@pytest.fixture
def refused(place: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused("fit", ..)` runs a command that must be refused, and leave all as it was; returns its sentence."""

    def run(*words: str, config: str = "tiny.yaml") -> str:
        before = everything(place.parent)
        with pytest.raises(SystemExit) as stop:
            command.main([words[0], "--config", config, *words[1:], QUIET])
        said = capfd.readouterr().err.splitlines()
        assert stop.value.code == 2
        assert everything(place.parent) == before
        assert [line for line in said if line.startswith("error: ")] == said[-1:]
        assert "Traceback" not in "".join(said)
        return said[-1].removeprefix("error: ")

    return run


# --------------------------------------------------------------------------------------------------------- checkpoints

LAST = Path("runs", "tiny", "1", "checkpoints", "last.ckpt")


def change(**values: Any) -> None:
    """Change entries of the run's checkpoint; None removes one."""
    content = {**torch.load(LAST, weights_only=True), **values}
    torch.save({key: value for key, value in content.items() if value is not None}, LAST)


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_checkpoint_with_code(refused: Callable[..., str], place: Path, command: str) -> None:
    mark = place.parent / "executed"
    change(more=Trap(mark))
    for given in ("last", str(LAST)):
        assert "last.ckpt' cannot be read" in refused(command, "--ckpt_path", given)
    said = refused(command, "--ckpt_path=last", "--weights_only=false")
    assert said.startswith("with weights_only: false a checkpoint may execute anything")
    assert not mark.exists()
    torch.load(LAST, weights_only=False)
    assert mark.exists()


def test_lightning_itself_is_told_to_execute_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between our look and Lightning's, and against an environment variable of torch."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    real, given = torch.load, []

    def load(*arguments: Any, weights_only: Any = None, **settings: Any) -> Any:
        given.append(weights_only)
        return real(*arguments, weights_only=weights_only, **settings)

    monkeypatch.setattr(torch, "load", load)
    with warnings.catch_warnings(action="ignore"):  # Lightning's, of a run that was moved
        command.main(["fit", "--config", "tiny.yaml", "--ckpt_path=last", "--trainer.max_epochs=1", QUIET])
    assert len(given) >= 3  # we look twice, then Lightning reads
    assert all(weights_only is True for weights_only in given)


def test_a_checkpoint_that_is_a_zip_bomb(refused: Callable[..., str]) -> None:
    with zipfile.ZipFile(LAST) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(LAST, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, bytes(1 << 26) if name.endswith("/data/0") else content)
    assert "it would unpack from" in refused("fit", "--ckpt_path=last")


def test_a_checkpoint_that_is_cut_or_flipped(refused: Callable[..., str]) -> None:
    content = LAST.read_bytes()
    for kept in (0, 4, 1000, len(content) // 2, len(content) - 1):
        LAST.write_bytes(content[:kept])
        assert "cannot be read: it is truncated" in refused("fit", "--ckpt_path=last")
    LAST.write_bytes(content)
    weight = torch.load(LAST, weights_only=True)["state_dict"]["networks.ema.conv_in.weight"]
    flipped = bytearray(content)
    flipped[content.index(weight.numpy().tobytes()) + 5] ^= 1  # between the entries of the archive lies padding
    LAST.write_bytes(flipped)
    assert "the checksum of its entry" in refused("test")


@pytest.mark.parametrize(
    "values",
    [
        {"loops": None},
        {"loops": {"fit_loop": 3}},
        {"optimizer_states": 5},
        {"optimizer_states": [{"state": {}, "param_groups": []}]},
        {"callbacks": [1]},
        {"callbacks": {"PenaltyScheduler": {"steps": 1}}},
        {"lr_schedulers": [7]},
        {"pytorch-lightning_version": None},
        {"pytorch-lightning_version": "nonsense"},
        {"global_step": "3"},
        {"epoch": None},
        {"state_dict": {"networks.denoiser.network.conv_in.weight": 3}},
    ],
)
def test_a_whole_checkpoint_whose_content_is_wrong(refused: Callable[..., str], values: dict[str, Any]) -> None:
    change(**values)
    said = refused("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert "checkpoint" in said or "state" in said


def test_a_damaged_log_is_not_lost(refused: Callable[..., str]) -> None:
    log = Path("runs/tiny/1/metrics.csv")
    log.write_text("step,loss\nthree,0.5\n")
    said = refused("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert "metrics.csv' is no log of a fit (invalid literal for int() with base 10: 'three')" in said


# ------------------------------------------------------------------------------------------------- names and links


def test_links_out_of_the_runs_are_not_followed(refused: Callable[..., str], place: Path) -> None:
    outside = place.parent / "outside"
    for name in ("checkpoints", "metrics.csv", "new"):
        moved = Path("runs/tiny/1", name)
        if moved.exists():
            moved.rename(place / name)
        moved.symlink_to(place / name if name != "new" else outside)
        assert "is a link out of its run's folder" in refused("test", "--ckpt_path=last")
        moved.unlink()
        if (place / name).exists():
            (place / name).rename(moved)
    latest = Path("runs/tiny/latest")
    latest.unlink()
    latest.symlink_to(outside, target_is_directory=True)
    for verb in ("fit", "test", "predict"):
        assert "latest' leads out of its folder" in refused(verb, "--ckpt_path=last")


@pytest.mark.parametrize("name", ["...yaml", "..yaml"])
def test_a_config_whose_runs_would_lie_elsewhere(refused: Callable[..., str], place: Path, name: str) -> None:
    (place / name).write_text((place / "tiny.yaml").read_text())
    assert "the runs of a config are kept under its name" in refused("fit", config=name)


def test_a_config_from_elsewhere_has_its_runs_here(place: Path) -> None:
    assert runs.config_name(Path("../outside/../../x.yaml")) == "x"
    assert runs.config_name(Path("/etc/x.yaml")) == "x"


def test_a_config_with_an_endless_name(refused: Callable[..., str]) -> None:
    assert "File name too long" in refused("fit", config="x" * 5000)


# ------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("label: 8", "label: !!python/object/apply:os.system ['touch ../outside/executed']", "python/object/apply"),
        ("label: 8", "label: !!python/object/new:os.system ['touch ../outside/executed']", "python/object/new"),
        ("label: 8", "label: !!python/name:os.system", "could not determine a constructor"),
        ("class_path: PenaltyScheduler", "class_path: subprocess.Popen", "Importing 'subprocess.Popen' is not allowed"),
        ("label: 8", "label: &a [*a]", "its aliases written out"),
        ("label: 8", "label: " + "[" * 70 + "]" * 70, "64 levels"),
        ("label: 8", "label: " + "9" * 5000, "Exceeds the limit"),
        ("seed_everything: 0", "seed_everything: 0\n\0", "no valid YAML"),
    ],
)
def test_configs(refused: Callable[..., str], place: Path, tiny_config: str, old: str, new: str, said: str) -> None:
    (place / "tiny.yaml").write_text(tiny_config.replace(old, new, 1))
    assert said in refused("fit")


def test_a_config_that_names_a_file_outside_as_its_export(refused: Callable[..., str], place: Path) -> None:
    text = (place / "tiny.yaml").read_text()
    export = "    - {class_path: Export, init_args: {folder: ../../../outside}}\n"
    (place / "tiny.yaml").write_text(text.replace("  callbacks:\n", "  callbacks:\n" + export))
    assert "Export expects the name of a folder inside the run" in refused("fit")


# --------------------------------------------------------------------------------------------- weights and data


def with_source(place: Path, text: str, source: Path) -> None:
    start, end = text.index("      class_path: Denoiser"), text.index("    constraints:")
    given = f"      class_path: PretrainedDenoiser\n      init_args: {{source: {source}}}\n"
    (place / "tiny.yaml").write_text(text[:start] + given + text[end:])


def test_weights_that_claim_what_they_have_not(refused: Callable[..., str], place: Path, tiny_config: str) -> None:
    exported = Path("runs/tiny/1/export")
    weights, config = exported / "unet" / "diffusion_pytorch_model.safetensors", exported / "unet" / "config.json"
    with_source(place, tiny_config, exported.resolve())
    whole, described = weights.read_bytes(), config.read_text()
    for header in (struct.pack("<Q", 2**62), struct.pack("<Q", 100_000_000), struct.pack("<Q", 0)):
        weights.write_bytes(header + whole[8:])
        assert "are truncated or from another model" in refused("fit")
    weights.write_bytes(whole)
    for old, new in (
        ("[\n    4,\n    8\n  ]", "[4, 400000]"),
        ('"layers_per_block": 1', '"layers_per_block": 1000000'),
    ):
        assert old in described
        config.write_text(described.replace(old, new))
        said = refused("fit")
        assert "describes a network of more than" in said or "are truncated or from another model" in said
    config.write_text(described)
    scheduler = exported / "scheduler" / "scheduler_config.json"
    scheduler.write_text(
        scheduler.read_text().replace('"num_train_timesteps": 100', '"num_train_timesteps": 99999999999')
    )
    assert "num_train_timesteps must be an integer in 1 .. 1,000,000, got 99999999999" in refused("fit")


def test_a_damaged_cache_of_generated_samples(refused: Callable[..., str], place: Path) -> None:
    (cached,) = (place / "cache" / "generated").iterdir()
    content = cached.read_bytes()
    cached.write_bytes(content[:-100])
    assert "is no complete safetensors file" in refused("fit")
    save_file({"drawn": torch.zeros(2, 1, 28, 28)}, cached)
    assert "should hold samples of shape (24, 1, 28, 28), but holds (2, 1, 28, 28); delete it" in refused("fit")


def test_damaged_data_files(refused: Callable[..., str], place: Path, tiny_config: str) -> None:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    raw = place / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 4, 14, 56) + bytes(4 * 784))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 4) + bytes(4))
    head = tiny_config[: tiny_config.index("data:\n")]
    (place / "tiny.yaml").write_text(head + "data: {class_path: MNISTDataModule, init_args: {data_dir: data}}\n")
    assert "images of shape (4, 14, 56) with 4 labels" in refused("fit")
    (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 2**32 - 1, 2**32 - 1, 28) + bytes(784))
    assert "MNIST was not found whole under 'data'" in refused("fit")
    pictures = place / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.png"):
        (pictures / name).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    folder = "{class_path: ImageFolderDataModule, init_args: {folder: pictures, size: 28, channels: 1}}"
    (place / "tiny.yaml").write_text(f"{head}data: {folder}\n")
    assert "a.png' is not a picture that Pillow can read" in refused("fit")


# ---------------------------------------------------------------------------------------------------------- the fuzzer


def test_a_few_rounds_of_the_fuzzer(run_program: Any) -> None:
    said = run_program(REPOSITORY / "tests" / "fuzz.py", "--rounds", 3, "--seed", 7)
    assert "0 failures with seed 7" in said
    assert said.count("| 3 |") >= 20
